"""Contribution Analysis Visualization as Captum attributions: of layers, of inputs, and for one neuron.

The method is Kakishita and Hattori's; equation numbers are those of their paper. For every unit ``x_i`` of a layer, the
*contribution ratio* ``beta[x_i -> p]`` is the share of the score ``p`` that came from the unit. The ratios of the
operations between the layer and the score are chained (equations 5 and 6), which gives ``x_i * c_i / p``. The
coefficient ``c`` is what ordinary autograd computes if every operation is replaced by its surrogate
(:mod:`captum_cav.rules`).
"""

from captum_cav.attribution.contributions import Attributions
from captum_cav.attribution.inputs import InputCAV
from captum_cav.attribution.layer import LayerCAV
from captum_cav.attribution.neuron import NeuronCAV
from captum_cav.attribution.options import Normalize, Rules
from captum_cav.attribution.scores import Score
from captum_cav.attribution.verification import verify

__all__ = ["Attributions", "InputCAV", "LayerCAV", "NeuronCAV", "Normalize", "Rules", "Score", "verify"]
