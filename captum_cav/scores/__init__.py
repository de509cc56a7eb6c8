"""Ready scores: what is explained where the model gives more than one number for each class.

A score is a function of what the model returns, whatever that is, and gives one number for each sample. ``LayerCAV``,
``InputCAV``, ``verify`` and ``compare`` take it as ``score=``. The operations of the score have contribution rules as
those of the model, so that its constants are shares of constants. Layers keep their names.

    >>> import torch
    >>> from captum_cav import LayerCAV, scores
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(2, 3, 1))
    >>> pictures = torch.ones(1, 1, 4, 4)                        # net gives scores of shape (1, 3, 4, 4)
    >>> LayerCAV(net, "1", score=scores.Region(2, mask=torch.ones(4, 4))).attribute(pictures).shape
    torch.Size([1, 2, 4, 4])

Any function will do: ``score=lambda output: output["aux"].sum((2, 3))`` gives one number for each class, of which
``target`` selects one. A function with the attribute ``takes_inputs = True`` gets the arguments of the model, too.
:func:`with_score` makes a model that returns the score, for metrics, drawings, ablations and the methods of Captum.
"""

from captum_cav.scores.combinations import Difference, Mean, Sum
from captum_cav.scores.detections import Detection
from captum_cav.scores.references import ReconstructionError, Similarity
from captum_cav.scores.regions import Region
from captum_cav.scores.running import ScoreFunction, with_score

__all__ = [
    "Detection",
    "Difference",
    "Mean",
    "ReconstructionError",
    "Region",
    "ScoreFunction",
    "Similarity",
    "Sum",
    "with_score",
]
