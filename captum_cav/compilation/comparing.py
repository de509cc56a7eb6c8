"""The test of a new recording: its results are compared with those of the attribution, on two inputs.

A replay must have the same bits. Fused kernels round in another way, and where a map is discontinuous, as at a ReLU or
a max pooling near a tie, rounding may change the map visibly. The attribution itself does the same if its inputs change
in their last binary place. So this change is the unit in which the tolerance for fused kernels is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from captum_cav.attribution.input_checks import Arguments
from captum_cav.compilation.recording import Recording, count_samples, with_samples
from captum_cav.compilation.runners import Runner, replay
from captum_cav.errors import RecordingError
from captum_cav.torch_internals import tree_map

#: By how much more than such changes fused kernels may change a result, and how many changes are tried.
FACTOR, TRIALS = 4.0, 4
#: How many units in the last place of its largest number a result may be off in any case.
LEAST_UNITS = 64.0


class DeviationError(RecordingError):
    """Fused kernels do not give what the operations give one after another."""


def check_recording(recording: Recording, arguments: Arguments, run: Runner, is_exact: bool) -> None:
    """Refuse a recording whose results are not those of the attribution.

    Args:
        recording: the recording.
        arguments: the arguments for which the recording was made.
        run: runs the recording.
        is_exact: whether the results must have the same bits. The operations one after another must have them in any
            case.

    Raises:
        RecordingError: says how far the results are off.
        DeviationError: if only those of fused kernels are.
    """
    one_by_one = run if is_exact else replay(recording)
    inputs = [("the recorded", arguments), ("another", changed(arguments))]
    if recording.is_for_any_batch:
        inputs.append(("a larger", with_samples(changed(arguments), count_samples(arguments) + 3)))
    for which, given in inputs:
        tensors = [*recording.tensors_of(given), *recording.constants.current()]
        expected = recording.reference(given)
        _check_bits(one_by_one(tensors), expected, which)
        if not is_exact:
            found = run(tensors)
            wobbled = [one_by_one(other) for other in in_last_place(tensors, len(recording.inputs))]
            for result, (deviation, allowed) in enumerate(deviations(found, expected, wobbled)):
                if not deviation <= allowed:
                    raise DeviationError(
                        f"the fused kernels do not give what the attribution gives for {which} input: a result of "
                        f"shape {tuple(expected[result].shape)} is off by {deviation:.1e} of its largest number, and "
                        f"{allowed:.1e} is allowed. That is {FACTOR:g} times what a change of the inputs in their last "
                        'place does. Pass backend="replay", which has no other rounding, or on_break="eager".'
                    )


def _check_bits(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], which: str) -> None:
    for one, other in zip(found, expected, strict=True):
        if not _is_same(one, other):
            off = deviation_of(one, other) if one.shape == other.shape else float("nan")
            raise RecordingError(
                f"the recording does not give what the attribution gives for {which} input: a result of shape "
                f"{tuple(other.shape)} is off by {off:.1e} of its largest number. The model decides something by "
                "numbers, or behaves otherwise the second time. Attribute without captum_cav.compile, or pass "
                'on_break="eager".'
            )


def deviations(
    found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], wobbled: Sequence[Sequence[torch.Tensor]]
) -> list[tuple[float, float]]:
    """How far each result of fused kernels is off, and how far it may be off, as shares of its largest number.

    Args:
        found: what the fused kernels give.
        expected: what the operations one after another give.
        wobbled: what they give for inputs that were changed in their last place.
    """
    # Sums for checks are float64, and are sums of numbers that were computed in the type of the other results.
    last_place = max((torch.finfo(one.dtype).eps for one in expected if one.is_floating_point()), default=0.0)
    return [
        (
            deviation_of(one, other),
            max(
                LEAST_UNITS * last_place if other.is_floating_point() else 0.0,
                *(FACTOR * deviation_of(trial[result], other) for trial in wobbled),
            ),
        )
        for result, (one, other) in enumerate(zip(found, expected, strict=True))
    ]


def in_last_place(tensors: Sequence[torch.Tensor], inputs: int) -> Iterator[list[torch.Tensor]]:
    """The tensors, in which each number of the inputs is, by chance, the next larger or the next smaller number.

    If the inputs are integers, such as words, the parameters are changed instead.

    Args:
        tensors: the inputs and constants of a recording.
        inputs: how many of them are inputs.
    """
    changes = inputs if any(tensor.is_floating_point() for tensor in tensors[:inputs]) else len(tensors)
    for trial in range(TRIALS):
        generator = torch.Generator().manual_seed(trial)
        yield [*(_moved(tensor, generator) for tensor in tensors[:changes]), *tensors[changes:]]


def _moved(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    signs = torch.randint(2, tensor.shape, generator=generator, device="cpu").to(tensor.device) * 2 - 1
    return torch.nextafter(tensor.detach(), (signs * torch.inf).to(tensor.dtype))


def changed(arguments: Arguments) -> Arguments:
    """Other arguments of the same kind: floating-point inputs times numbers near 1, and integers in another order."""
    generator = torch.Generator().manual_seed(0)

    def other(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if leaf.is_floating_point():
            factors = 0.75 + 0.5 * torch.rand(leaf.shape, generator=generator, device="cpu")
            return (leaf.detach() * factors.to(leaf.device)).to(leaf.dtype)
        return leaf.roll(1, -1) if leaf.dim() else leaf

    return arguments._replace(inputs=tree_map(other, arguments.inputs))


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def deviation_of(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference between two tensors, as a share of the largest number of the second one."""
    if _is_same(one, other):
        return 0.0
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).abs().max()) / (float(other.abs().max()) or 1.0)
