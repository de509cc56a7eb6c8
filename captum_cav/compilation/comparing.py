"""The test of a new recording: its results are compared with those of the attribution, on two inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from captum_cav.attribution.input_checks import Arguments
from captum_cav.compilation.recording import Recording
from captum_cav.compilation.runners import Runner
from captum_cav.errors import RecordingError
from captum_cav.torch_internals import tree_map


def check_recording(recording: Recording, arguments: Arguments, run: Runner) -> None:
    """Refuse a recording whose results are not those of the attribution, to the bit.

    Args:
        recording: the recording.
        arguments: the arguments for which the recording was made.
        run: runs the recording.

    Raises:
        RecordingError: says how far the results are off.
    """
    for which, given in (("the recorded", arguments), ("another", changed(arguments))):
        constants = recording.constants.now()
        assert constants is not None
        expected = recording.reference(given)
        found = run([*recording.tensors_of(given), *constants])
        for one, other in zip(found, expected, strict=True):
            if not _is_same(one, other):
                raise RecordingError(
                    f"the recording does not give what the attribution gives for {which} input: a result of shape "
                    f"{tuple(other.shape)} is off by {_deviation(one, other):.1e} of its largest number. The model "
                    "decides something by numbers, or behaves otherwise the second time. Attribute without "
                    'captum_cav.compile, or pass on_break="eager".'
                )


def changed(arguments: Arguments) -> Arguments:
    """Other arguments of the same kind: floating-point inputs times numbers near 1, and integers in another order."""
    generator = torch.Generator().manual_seed(0)

    def other(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if leaf.is_floating_point():
            factors = 0.75 + 0.5 * torch.rand(leaf.shape, generator=generator)
            return (leaf.detach() * factors.to(leaf.device)).to(leaf.dtype)
        return leaf.roll(1, -1) if leaf.dim() else leaf

    return arguments._replace(inputs=tree_map(other, arguments.inputs))


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _deviation(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape:
        return float("nan")
    one, other = one.double(), other.double()
    return float((one - other).abs().max()) / (float(other.abs().max()) or 1.0)
