"""Deletion, insertion, their gap and single deletion, against one pixel after the other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from captum_cav.errors import CAVTypeError, InputError, ModelError, OptionError, TargetError
from captum_cav.metrics import deletion, insertion, morf_lerf, single_deletion
from tests.metrics import reference
from tests.metrics.networks import convolutional, maps, pictures
from tests.metrics.strategies import few
from tests.support.ids import without_address

MODEL = convolutional()
TARGETS = [2, 0, 1]
AREAS = [deletion, insertion, morf_lerf]


def close(found: torch.Tensor, expected: Any) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("output", ["probability", "score"])
@pytest.mark.parametrize("steps", [1, 5, 48, 60])
@pytest.mark.parametrize("size", [(8, 6), (4, 3), (3, 4), (16, 6)], ids=str)
def test_areas_by_definition(size: tuple[int, int], steps: int, output: Any) -> None:
    inputs, explained = pictures(3), maps(3, *size)
    options = {"steps": steps, "output": output, "baseline": "zero"}
    expected = [
        [
            reference.area(
                MODEL,
                picture,
                rows,
                target,
                torch.zeros_like(picture),
                steps=steps,
                insert=insert,
                probability=output == "probability",
            )
            for picture, rows, target in zip(inputs, explained, TARGETS, strict=True)
        ]
        for insert in (False, True)
    ]
    deleted, inserted = torch.tensor(expected, dtype=torch.float64)
    close(deletion(MODEL, inputs, explained, TARGETS, **options), deleted)
    close(insertion(MODEL, inputs, explained, TARGETS, **options), inserted)
    close(morf_lerf(MODEL, inputs, explained, TARGETS, **options), inserted - deleted)


@few
@given(st.lists(st.integers(0, 2), min_size=12, max_size=12), st.integers(1, 14), st.booleans())
def test_equal_values_go_in_the_order_of_reading(values: list[int], steps: int, insert: bool) -> None:
    picture, rows = pictures(1, 3, 4), torch.tensor(values).reshape(3, 4).double()
    measure = insertion if insert else deletion
    found = measure(nn.Flatten(), picture, rows[None], 5, steps=steps, baseline="zero", output="score")
    close(
        found,
        [
            reference.area(
                nn.Flatten(), picture[0], rows, 5, picture[0] * 0, steps=steps, insert=insert, probability=False
            )
        ],
    )


def test_the_gap_is_that_of_the_least_relevant_first_and_the_most_relevant_first() -> None:
    inputs, explained = pictures(3), maps(3)
    most_first, least_first = (deletion(MODEL, inputs, sign * explained, TARGETS, steps=12) for sign in (1, -1))
    close(morf_lerf(MODEL, inputs, explained, TARGETS, steps=12), least_first - most_first)
    close(morf_lerf(MODEL, inputs, -explained, TARGETS, steps=12), most_first - least_first)


@pytest.mark.parametrize("measure", AREAS)
@pytest.mark.parametrize("change", [torch.exp, lambda m: m**3, lambda m: 1e-9 * m - 4], ids=["exp", "cube", "affine"])
def test_only_the_order_counts(measure: Any, change: Any) -> None:
    inputs, explained = pictures(3), maps(3)
    found = measure(MODEL, inputs, explained, TARGETS)
    assert torch.equal(measure(MODEL, inputs, change(explained), TARGETS), found)
    low, high = measure.range
    assert ((found >= low) & (found <= high)).all()
    assert found.std() > 1e-3


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_steps_are_evenly_spaced(steps: int) -> None:
    # A model that counts the pixels: the curve is the share that is left, whatever the order, and its area a half.
    def remaining(inputs: torch.Tensor) -> torch.Tensor:
        return inputs.mean((2, 3))

    inputs = torch.ones(2, 1, 30, 40, dtype=torch.float64)
    options = {"steps": steps, "baseline": "zero", "output": "score"}
    close(deletion(remaining, inputs, maps(2, 30, 40), 0, **options), [0.5, 0.5])
    close(insertion(remaining, inputs, maps(2, 7, 5), 0, **options), [0.5, 0.5])


@pytest.mark.parametrize("size", [(8, 6), (20, 33), (40, 24), (3, 2), (1, 1)], ids=str)
def test_baselines(size: tuple[int, int]) -> None:
    inputs = pictures(2, *size)
    fixed = pictures(1, *size, seed=5)
    expected = {
        "blur": torch.stack([reference.blurred(picture) for picture in inputs]),
        "zero": torch.zeros_like(inputs),
        "mean": torch.stack(
            [torch.stack([torch.full(size, float(channel.mean())) for channel in one]) for one in inputs]
        ),
        fixed: fixed.expand_as(inputs),
        torch.tensor(2.5): torch.full_like(inputs, 2.5),
        torch.cos: inputs.cos(),
    }

    def power(inputs: torch.Tensor) -> torch.Tensor:
        # Tells pictures apart by any of their pixels.
        return (inputs * torch.arange(inputs[0].numel()).cos().reshape(inputs.shape[1:])).sum((1, 2, 3)).unsqueeze(1)

    for baseline, stands in expected.items():
        found = deletion(power, inputs, maps(2, *size), 0, steps=1, baseline=baseline, output="score")
        # torchvision's Gaussian is one of single precision.
        wanted = (power(inputs) + power(stands.double()))[:, 0] / 2
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
        if baseline == "blur":
            default = deletion(power, inputs, maps(2, *size), 0, steps=1, output="score")
            assert torch.equal(default, found)


@pytest.mark.parametrize("output", ["probability", "score"])
@pytest.mark.parametrize(("size", "cells"), [((8, 6), 4), ((8, 6), 2), ((9, 7), 3), ((4, 4), 4)], ids=str)
@pytest.mark.parametrize("resolution", [None, (2, 3), (12, 13)], ids=str)
def test_single_deletion_by_definition(
    size: tuple[int, int], cells: int, resolution: tuple[int, int] | None, output: Any
) -> None:
    inputs, explained = pictures(3, *size), maps(3, *(resolution or size))
    expected = [
        reference.single_deletion(
            MODEL, one, rows, target, reference.blurred(one), cells=cells, probability=output == "probability"
        )
        for one, rows, target in zip(inputs, explained, TARGETS, strict=True)
    ]
    close(single_deletion(MODEL, inputs, explained, TARGETS, cells=cells, output=output), expected)
    assert len(set(expected)) > 1
    close(single_deletion(MODEL, inputs, -explained, TARGETS, cells=cells, output=output), [-v for v in expected])


def test_single_deletion_is_1_for_the_true_drops() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 8 * 8, 2)).double()
    inputs = pictures(3, 8, 8)
    truth = (inputs * net[1].weight[1].detach().reshape(2, 8, 8)).sum(1)
    options = {"baseline": "zero", "output": "score"}
    close(single_deletion(net, inputs, truth, 1, **options), [1, 1, 1])
    close(single_deletion(net, inputs, truth * 7 + 3, 1, **options), [1, 1, 1])
    close(single_deletion(net, inputs, -truth, 1, **options), [-1, -1, -1])


@few
@given(st.floats(-1, 1, width=32), st.integers(1, 9))
def test_an_even_map_has_no_best_cells(value: float, side: int) -> None:
    found = single_deletion(MODEL, pictures(1, 9, 7), torch.full((1, side, side), value), 0)
    assert math.isnan(float(found))


def test_where_nothing_falls_there_is_no_correlation() -> None:
    found = single_deletion(lambda x: torch.ones(len(x), 3), pictures(2), maps(2), 0)
    assert found.isnan().all()


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("measure", [deletion, insertion])
def test_an_even_map_goes_in_the_order_of_reading_at_any_resolution(measure: Any, side: int) -> None:
    reading = -torch.arange(48.0).reshape(1, 8, 6)
    found = measure(MODEL, pictures(1), torch.full((1, side, side), 0.1), 1)
    assert torch.equal(found, measure(MODEL, pictures(1), reading, 1))


@pytest.mark.parametrize("measure", [*AREAS, single_deletion])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_batch_size_does_not_change_the_result(measure: Any, batch_size: int) -> None:
    seen = []

    def model(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(len(inputs))
        return MODEL(inputs)

    inputs, explained = pictures(3), maps(3, 4, 3)
    found = measure(model, inputs, explained, TARGETS, batch_size=batch_size)
    assert max(seen) <= batch_size
    runs = {single_deletion: 17, morf_lerf: 42}.get(measure, 21)
    # One picture runs once more, to find out whether the model ends in a squashing function.
    assert sum(seen) == 3 * runs + (2 if measure is morf_lerf else 1)
    close(found, measure(MODEL, inputs, explained, TARGETS))
    one_by_one = [
        measure(MODEL, inputs[i : i + 1], explained[i : i + 1], TARGETS[i], batch_size=batch_size) for i in range(3)
    ]
    close(found, torch.cat(one_by_one))


@pytest.mark.parametrize("target", [1, (1,), [1, 1, 1], torch.tensor(1), torch.tensor([1, 1, 1]), [(1,)] * 3, -2])
def test_targets_in_all_of_captums_forms(target: Any) -> None:
    inputs, explained = pictures(3), maps(3)
    assert torch.equal(deletion(MODEL, inputs, explained, target), deletion(MODEL, inputs, explained, [1, 1, 1]))


def test_one_score_an_example_needs_no_target() -> None:
    def brightness(inputs: torch.Tensor) -> torch.Tensor:
        return inputs.mean((1, 2, 3))

    inputs = torch.ones(2, 2, 8, 6, dtype=torch.float64)
    close(deletion(brightness, inputs, maps(2), None, steps=12, baseline="zero", output="score"), [0.5, 0.5])


def test_half_precision_is_softmaxed_in_single() -> None:
    model, inputs = convolutional().bfloat16(), pictures(2).bfloat16()
    found = deletion(model, inputs, maps(2), 1, baseline="zero")
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found, deletion(MODEL, inputs.double(), maps(2), 1, baseline="zero"), rtol=0.2, atol=0.02
    )


@pytest.mark.parametrize("measure", [*AREAS, single_deletion])
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"model": "model"}, CAVTypeError, "model is a str; expected a torch.nn.Module or another callable"),
        ({"model": nn.Dropout()}, ModelError, r"module '' \(Dropout\) is in training mode"),
        (
            {"model": lambda x: x.sum()},
            InputError,
            r"the model returned \(1,\) for \d inputs; expected one row for each",
        ),
        ({"model": lambda x: [x]}, CAVTypeError, "the model returned a list.*; expected a tensor of scores"),
        ({"model": lambda x: x.flatten(1) / 0}, ModelError, "the score is not finite in"),
        ({"inputs": torch.ones(2, 8, 6)}, InputError, r"maps has shape \(2, 8, 6\); expected \(N, t\)"),
        ({"inputs": torch.ones(2, 1, 8, 6).long()}, InputError, "inputs is a torch.int64 tensor .* floating-point"),
        ({"inputs": [1]}, CAVTypeError, "inputs is a list; expected a tensor"),
        ({"maps": torch.ones(3, 8, 6)}, InputError, "maps holds 3 examples and inputs 2; expected the same number"),
        ({"maps": torch.ones(2, 1, 8, 6)}, InputError, r"maps has shape \(2, 1, 8, 6\); expected \(N, h, w\)"),
        ({"maps": torch.full((2, 8, 6), math.inf)}, InputError, "maps holds NaN or infinity in samples 0, 1"),
        ({"target": 3}, TargetError, "is 3, out of range for output shape"),
        ({"target": [0, 1, 2]}, TargetError, "target lists 3 entries for 2 examples; expected one for each"),
        ({"target": 1.5}, CAVTypeError, r"is 1\.5 \(float\); expected an integer"),
        ({"target": None}, TargetError, "target is missing"),
        (
            {"baseline": "black"},
            OptionError,
            'baseline is \'black\'; expected "blur", "zero", "mean", a number, a tensor or',
        ),
        ({"baseline": torch.ones(5, 5)}, InputError, r"baseline has shape \(5, 5\), which does not expand to that of"),
        ({"baseline": lambda x: x[:1]}, InputError, r"baseline returned shape \(1, 2, 8, 6\) for inputs of \(2, 2"),
        ({"baseline": lambda x: 0}, CAVTypeError, "baseline returned a int; expected a tensor"),
        ({"output": "logit"}, OptionError, 'output is \'logit\'; expected "probability" or "score"'),
        ({"batch_size": 0}, OptionError, "batch_size is 0; expected an integer of at least 1"),
    ],
    ids=without_address,
)
def test_what_does_not_fit_is_refused(
    measure: Any, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"model": MODEL, "inputs": pictures(2), "maps": maps(2), "target": 1}
    with pytest.raises(error, match=message):
        measure(**(arguments | changed))


def test_options_of_one_measure_are_checked_too() -> None:
    given = MODEL, pictures(2), maps(2), 1
    with pytest.raises(OptionError, match=r"steps is 2\.5; expected an integer of at least 1"):
        deletion(*given, steps=2.5)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="cells is 1; expected an integer of at least 2"):
        single_deletion(*given, cells=1)
    with pytest.raises(InputError, match="inputs of 8 x 6 pixels cannot be divided into 7 x 7 cells"):
        single_deletion(*given, cells=7)
    with pytest.raises(InputError, match=r'"probability" is the softmax over classes.*got \(\d, 1\); pass output="sco'):
        deletion(lambda x: x.mean((1, 2, 3)).unsqueeze(1), pictures(2), maps(2), 0)
