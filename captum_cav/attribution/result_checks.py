"""Everything that is checked after the propagation; no other module reads scores or contributions on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from captum_cav import checks
from captum_cav.attribution.backward import Propagated
from captum_cav.attribution.options import Normalize
from captum_cav.attribution.scores import SelectedScores
from captum_cav.errors import ModelError


def check_scores(
    what: str, scores: SelectedScores, normalize: Normalize, model: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    """Refuse scores that are not finite, and warn about scores that are too small to divide by.

    Args:
        what: what the scores are, with a verb, such as ``"the score is"``.
        scores: the scores.
        normalize: what contributions are divided by.
        model: the model. It runs once more if a score is not finite.
        args: the arguments of the model.

    Raises:
        ModelError: names the samples, and the module that gives the first number that is not finite.
    """
    checks.check_finite_results(what, scores.values, model, args, scores.first_sample)
    if normalize is not None:
        checks.warn_near_zero(scores.values, scores.output, scores.first_sample)


def samples_are_separate(found: Propagated) -> bool:
    """Whether the deltas of all samples add up to the delta of the batch, up to rounding.

    They do not if torch differentiated the backward pass of a user's rule wrongly. That happens without an error if the
    backward pass detaches what it gets.
    """
    if found.separation is None:
        return True
    tolerance = torch.finfo(found.seeds.dtype).eps ** 0.5
    left, size = found.separation.unbind(1)
    return not bool((left > tolerance * size).any())


def check_contributions(
    found: Propagated, names: Sequence[str], model: Callable[..., Any], args: tuple[Any, ...], first_sample: int
) -> None:
    """Refuse layers that the score does not depend on, and contributions that are not finite.

    Args:
        found: what the propagation found.
        names: of the explained layers, such as ``"layer 'features.3'"``.
        model: the model. It runs once more if a contribution is not finite.
        args: the arguments of the model.
        first_sample: the number of the first of these samples in the batch.

    Raises:
        ModelError: names the layers or the samples.
    """
    if found.independent:
        refuse_independent(", ".join(names[place] for place in found.independent), found.weighed)
    # Ratios to a score of 0 are not finite. A warning has told about that score.
    if bool(torch.isfinite(found.seeds).all()):
        for name, parts in zip(names, found.contributions, strict=True):
            for part in parts:
                checks.check_finite_results(f"the contributions at {name} are", part, model, args, first_sample)


def refuse_independent(name: str, weighed: str | None) -> NoReturn:
    """Refuse to explain a score that has no contributions of a layer.

    Args:
        name: of the layer, such as ``"layer 'features.3'"``.
        weighed: an operation in which a gate weighs nothing but constants, or None if there is none.

    Raises:
        ModelError: always.
    """
    if weighed is not None:
        raise ModelError(
            f"the score does not depend on {name} by anything that carries contributions. In {weighed} a gate, such as "
            "attention weights or a sigmoid, multiplies only constants: under these rules a gate is a constant, and so "
            'is that product. If this is why, pass rules="attnlrp", with which gates carry. Otherwise the score is '
            "computed before the layer, under torch.no_grad(), from detached tensors, or the layer weighs only."
        )
    raise ModelError(
        f"the score does not depend on {name} by anything that carries contributions (it is computed before the layer, "
        "under torch.no_grad(), from detached tensors or integers, or weighs only: gates and attention weights carry "
        "nothing)."
    )
