"""Contributions as an attribution method of inseq: importing this module registers the method ``"cav"`` there.

Needs inseq: ``pip install "captum_cav[inseq]"``.

    import inseq
    import captum_cav.inseq

    model = inseq.load_model("gpt2", "cav")                 # or "cav", rules="paper"
    model.attribute("The cat sat on the", attributed_fn="logit").show()

With ``attributed_fn="logit"`` the attributions are those of :class:`captum_cav.SequenceCAV`, in units of the score. By
default, inseq explains the probability, which is no sum of contributions: the logit is what can be divided.
"""

from __future__ import annotations

from typing import Any

from captum_cav.attribution import LayerCAV, Normalize, Rules

try:
    from inseq.attr.feat.gradient_attribution import GradientAttributionRegistry
except ImportError as error:
    raise ImportError('captum_cav.inseq expected the package inseq: pip install "captum_cav[inseq]"') from error

__all__ = ["CAVAttribution"]


class CAVAttribution(GradientAttributionRegistry):  # type: ignore[misc]
    """The method ``"cav"`` of inseq, at the embedding of the tokens.

    Args:
        attribution_model: a model of inseq.
        rules: as for :class:`captum_cav.LayerCAV`.
        normalize: as for :class:`captum_cav.LayerCAV`.
        kwargs: passed on to inseq, such as ``target_layer``.
    """

    method_name = "cav"

    def __init__(
        self, attribution_model: Any, rules: Rules = "attnlrp", normalize: Normalize = None, **kwargs: Any
    ) -> None:
        super().__init__(attribution_model, hook_to_model=False)
        # The inputs are indices of tokens, and the contributions are those of the embedding.
        self.attribute_batch_ids = True
        self.forward_batch_embeds = False
        self.use_baselines = False
        self.hook(**kwargs)
        self.method = LayerCAV(self.attribution_model, self.target_layer, rules=rules, normalize=normalize)
