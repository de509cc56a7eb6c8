"""Grids of pictures: grid pointing, focus and DiFull."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from captum.attr import (
    DeepLift,
    InputXGradient,
    LayerGradCam,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    Occlusion,
)
from hypothesis import given
from torch import nn

from captum_cav import InputCAV, LayerCAV, zoo
from captum_cav.errors import CAVTypeError, InputError, LayerError, ModelError, OptionError, TargetError
from captum_cav.metrics import difull, divide, focus, grid_pointing, shares_in_cells
from tests.metrics import reference
from tests.metrics.networks import convolutional, pictures
from tests.metrics.strategies import batches, few
from tests.support.ids import without_address

pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor . did not already require gradients"),
    pytest.mark.filterwarnings("ignore:Setting (forward, )?backward hooks"),
]


@few
@given(batches())
def test_shares_are_those_of_the_areas(maps: torch.Tensor) -> None:
    found = shares_in_cells(maps)
    expected = torch.tensor([reference.shares_in_cells(rows) for rows in maps], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# Composition ---------------------------------------------------------------------------------------------------------

# Each picture's pixels are its number, so a grid tells what it is made of.
CLASSES = [5, 7, 5, 9, 7, 2, 2, 5, 3]


def numbered(count: int, height: int = 4, width: int = 6) -> torch.Tensor:
    return torch.arange(float(count)).reshape(-1, 1, 1, 1).expand(count, 3, height, width)


def seen_in(grid: torch.Tensor) -> list[int]:
    """The numbers of the four pictures, in the order of reading."""
    height, width = grid.shape[1] // 2, grid.shape[2] // 2
    cells = [grid[:, row : row + height, column : column + width] for row in (0, height) for column in (0, width)]
    assert all(len(cell.unique()) == 1 for cell in cells)
    return [int(cell.unique()) for cell in cells]


class Recorder:
    """Keeps the grids and targets; its maps are 1 to 4 in the four cells, in the order of reading."""

    def __init__(self) -> None:
        self.grids: list[list[int]] = []
        self.targets: list[Any] = []
        self.batches: list[int] = []
        self.shapes: set[tuple[int, ...]] = set()

    def __call__(self, model: Any, inputs: torch.Tensor, target: Any) -> torch.Tensor:
        self.grids += [seen_in(grid) for grid in inputs]
        self.targets += target
        self.batches.append(len(inputs))
        self.shapes.add(tuple(inputs.shape[1:]))
        return torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(len(inputs), 2, 2)


@pytest.mark.parametrize("seed", range(5))
def test_a_grid_has_four_classes_and_the_value_is_the_share_of_its_cell(seed: int) -> None:
    notes = Recorder()
    found = grid_pointing(nn.Identity(), numbered(9), CLASSES, notes, seed=seed, batch_size=4)
    assert notes.targets == CLASSES
    assert notes.batches == [4, 4, 1]
    assert notes.shapes == {(3, 8, 12)}
    for own, grid in enumerate(notes.grids):
        assert own in grid
        assert len({CLASSES[one] for one in grid}) == 4
    expected = [(1 + grid.index(own)) / 10 for own, grid in enumerate(notes.grids)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert len(set(expected)) > 1
    assert torch.equal(grid_pointing(nn.Identity(), numbered(9), CLASSES, Recorder(), seed=seed), found)


@pytest.mark.parametrize("seed", range(5))
def test_a_mosaic_has_two_of_the_class_and_the_value_is_the_share_of_both(seed: int) -> None:
    notes, classes = Recorder(), [5, 7, 5, 7, 7]
    found = focus(nn.Identity(), numbered(5), classes, notes, seed=seed)
    assert notes.targets == classes
    expected = []
    for own, grid in enumerate(notes.grids):
        assert own in grid
        assert len(set(grid)) == 4
        inside = [classes[one] == classes[own] for one in grid]
        assert sum(inside) == 2
        expected.append(sum(place + 1 for place, is_in in enumerate(inside) if is_in) / 10)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_grids_differ_with_the_seed_and_use_all_places_and_pictures() -> None:
    notes = Recorder()
    for seed in range(12):
        grid_pointing(nn.Identity(), numbered(9), CLASSES, notes, seed=seed)
    places = [grid.index(own % 9) for own, grid in enumerate(notes.grids)]
    assert set(places) == {0, 1, 2, 3}
    assert {one for grid in notes.grids[::9] for one in grid} == {0, 1, 3, 4, 5, 6, 8}  # 2 and 7 are of its class


@pytest.mark.parametrize("measure", [grid_pointing, focus])
@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        (lambda x: torch.ones(len(x), 8, 12), "chance"),
        (lambda x: torch.ones(len(x), 7, 5), "chance"),
        (lambda x: torch.ones(len(x), 1, 1) * 1e-30, "chance"),
        (lambda x: -torch.ones(len(x), 8, 12), 0),
        (lambda x: torch.zeros(len(x), 4, 4), 0),
    ],
)
def test_maps_that_do_not_point(measure: Any, maps: Any, expected: Any) -> None:
    classes = [1, 1, 2, 2, 3, 3, 4, 4]
    expected = {grid_pointing: 0.25, focus: 0.5}[measure] if expected == "chance" else expected
    found = measure(nn.Identity(), numbered(8), classes, lambda model, x, target: maps(x))
    torch.testing.assert_close(found, torch.full((8,), float(expected), dtype=torch.float64))


def test_what_points_right_has_1_whatever_its_scale_and_what_is_negative_does_not_count() -> None:
    classes = list(range(8))

    def explain(model: Any, inputs: torch.Tensor, target: Any) -> torch.Tensor:
        is_own = inputs[:, 0] == torch.tensor(target)[:, None, None]
        return torch.where(is_own, 1e-20, -1e20)

    assert grid_pointing(nn.Identity(), numbered(8), classes, explain).tolist() == [1.0] * 8
    negated = grid_pointing(nn.Identity(), numbered(8), classes, lambda *given: -explain(*given))
    assert negated.tolist() == [0.0] * 8


# DiFull --------------------------------------------------------------------------------------------------------------

LAYERS = ["0", "1", "2", "3", "4", "5"]


def one_cell(picture: torch.Tensor, cell: int) -> torch.Tensor:
    height, width = picture.shape[-2] // 2, picture.shape[-1] // 2
    row, column = divmod(cell, 2)
    return picture[..., row * height : (row + 1) * height, column * width : (column + 1) * width]


def outside(values: torch.Tensor, cell: int) -> torch.Tensor:
    values = values.clone()
    one_cell(values, cell).zero_()
    return values


@pytest.mark.parametrize("layer", [None, *LAYERS])
def test_a_divided_model_gives_the_scores_of_its_cells(layer: str | None) -> None:
    model, grids = convolutional(), pictures(3, 16, 12)
    divided = divide(model, layer)
    expected = torch.cat([model(one_cell(grids, cell)) for cell in range(4)], 1)
    torch.testing.assert_close(divided(grids), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(copy.deepcopy(divided)(grids), expected, rtol=1e-12, atol=1e-12)
    assert [name for name, _ in divided.named_modules()] == [name for name, _ in model.named_modules()]
    assert all(isinstance(one, type(other)) for one, other in zip(divided.modules(), model.modules(), strict=True))


@pytest.mark.parametrize("rules", [None, "gamma", "epsilon_plus_flat", "pinpoint"])
@pytest.mark.parametrize("normalize", ["abs", None])
@pytest.mark.parametrize("cell", range(4))
def test_cav_is_exactly_zero_outside_of_the_cell(cell: int, normalize: Any, rules: str | None) -> None:
    model, grids, target = convolutional(), pictures(2, 16, 12), 2
    own = one_cell(grids, cell).clone()
    for layer in LAYERS:
        divided = divide(model, layer)
        found = LayerCAV(divided, layer, rules=rules, normalize=normalize).attribute(grids, 3 * cell + target)
        assert torch.count_nonzero(outside(found, cell)) == 0
        # And inside it is what it is without the others.
        alone = LayerCAV(model, layer, rules=rules, normalize=normalize).attribute(own, target)
        torch.testing.assert_close(one_cell(found, cell), alone, rtol=1e-9, atol=1e-12)
        assert torch.count_nonzero(alone) > 0
    found = InputCAV(divide(model), rules=rules, normalize=normalize).attribute(grids, 3 * cell + target)
    assert torch.count_nonzero(outside(found, cell)) == 0
    assert torch.count_nonzero(found) > 0


def sizes_by(method: Any, layer: str | None, **options: Any) -> Any:
    """An explanation by a method, its absolute values: whatever lies outside counts."""

    def explain(model: nn.Module, inputs: torch.Tensor, target: Any) -> torch.Tensor:
        attribution = method(model) if layer is None else method(model, model.get_submodule(layer))
        result: torch.Tensor = attribution.attribute(inputs, target=target, **options).detach().abs().sum(1)
        return result

    return explain


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", [LayerCAV, LayerGradientXActivation, LayerIntegratedGradients], ids=str)
def test_methods_that_follow_the_score_back_have_1_at_any_layer(method: Any, layer: str) -> None:
    found = difull(convolutional(), pictures(5), [0, 1, 2, 0, 1], sizes_by(method, layer), layer=layer)
    assert found.tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (InputCAV, {}),
        (InputXGradient, {}),
        (DeepLift, {}),
        (Occlusion, {"sliding_window_shapes": (2, 2, 2), "strides": (2, 2, 2)}),
    ],
    ids=str,
)
def test_methods_that_follow_the_score_back_have_1_at_the_inputs(method: Any, options: dict[str, Any]) -> None:
    found = difull(convolutional(), pictures(5), [0, 1, 2, 0, 1], sizes_by(method, None, **options))
    assert found.tolist() == [1.0] * 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("squeezenet1_1", ["features.12", "features.9", "features.6", "features.3", "features.0"]),
        ("efficientnet_lite0", ["head.norm", "head", "blocks.11", "blocks.5", "blocks.1", "stem"]),
    ],
)
@pytest.mark.parametrize("rules", ["paper", "pinpoint"])
def test_cav_is_exactly_zero_outside_of_the_cell_in_networks_that_learned(
    name: str, layers: list[str], rules: str
) -> None:
    network = zoo.load(name)
    cell = network.preprocess(zoo.demo_picture())
    grids = torch.randn(1, 3, 2 * cell.shape[1], 2 * cell.shape[2], generator=torch.Generator().manual_seed(0))
    one_cell(grids, 2).copy_(cell)
    for layer in layers:
        divided = divide(network.model, layer)
        found = LayerCAV(divided, layer, rules=rules, normalize="abs").attribute(grids, 2 * 1000 + 235)
        assert torch.count_nonzero(outside(found, 2)) == 0
        assert torch.count_nonzero(found) > 0


def test_grad_cam_does_not_stay_in_the_cell() -> None:
    # Its weights are means over the whole map, the activations lie everywhere.
    explain = sizes_by(LayerGradCam, "4", relu_attributions=True)
    found = difull(convolutional(), pictures(8), [0, 1, 2, 0, 1, 2, 0, 1], explain, layer="4")
    assert 0.1 < found.mean() < 0.6


def test_the_value_is_the_share_of_the_cell_that_the_head_sees() -> None:
    model, inputs, notes = convolutional(), numbered(6)[:, :2].double(), Recorder()
    targets = [2, 0, 1, -1, 1, 0]
    found = difull(model, inputs, targets, notes, seed=3, batch_size=4)
    assert notes.batches == [4, 2]
    cells = [grid.index(own) for own, grid in enumerate(notes.grids)]
    assert all(len(set(grid)) == 4 for grid in notes.grids)
    assert notes.targets == [3 * cell + target % 3 for cell, target in zip(cells, targets, strict=True)]
    torch.testing.assert_close(found, torch.tensor([(1 + cell) / 10 for cell in cells], dtype=torch.float64))


# What cannot be used -------------------------------------------------------------------------------------------------


class Returns(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def explain_evenly(model: Any, inputs: torch.Tensor, target: Any) -> torch.Tensor:
    return torch.ones(len(inputs), 2, 2)


CLASSES_OF_EIGHT: dict[Any, Any] = {grid_pointing: list(range(8)), focus: [0, 1] * 4, difull: [0, 1] * 4}


@pytest.mark.parametrize("measure", CLASSES_OF_EIGHT)
def test_the_model_is_left_as_it_was(measure: Any) -> None:
    model = convolutional()
    state, kinds = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    before = torch.random.get_rng_state()
    measure(model, pictures(8), CLASSES_OF_EIGHT[measure], explain_evenly)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [type(module) for module in model.modules()] == kinds
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("measure", "target", "message"),
    [
        (grid_pointing, [0, 1, 2, 2], r"example 0 cannot be put into a grid: it takes pictures of four different clas"),
        (grid_pointing, 1, r"example 0 .* classes, of 4 in the batch"),
        (focus, [0, 1, 2, 2], "example 0 .* takes another picture of its class and two of other classes, of 4 in"),
        (focus, [0, 0, 0, 1], "example 0 cannot be put into a grid"),
    ],
    ids=without_address,
)
def test_too_few_classes_are_refused(measure: Any, target: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(convolutional(), pictures(4), target, explain_evenly)


@pytest.mark.parametrize("measure", [grid_pointing, focus])
def test_a_class_is_needed(measure: Any) -> None:
    with pytest.raises(TargetError, match="target is None; expected the class of each picture"):
        measure(convolutional(), pictures(4), None, explain_evenly)


@pytest.mark.parametrize(("measure", "target"), CLASSES_OF_EIGHT.items())
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"model": "model"}, CAVTypeError, "is a str; expected a torch.nn.Module"),
        ({"model": convolutional().train()}, ModelError, "is in training mode"),
        ({"inputs": torch.ones(8, 6)}, InputError, r"expected floating-point pictures of shape \(N, C, H, W"),
        ({"target": [1]}, TargetError, "target lists 1 entries for 8 examples"),
        ({"explain": None}, CAVTypeError, "explain is a NoneType; expected a function"),
        ({"explain": lambda m, x, t: x}, InputError, "what explain returned has shape"),
        ({"explain": lambda m, x, t: x[:, 0] * math.nan}, InputError, "what explain returned holds NaN or infinity"),
        ({"explain": lambda m, x, t: x[:2, 0]}, InputError, "what explain returned holds 2 examples and inputs 8"),
        ({"batch_size": 0}, OptionError, "batch_size is 0"),
    ],
    ids=without_address,
)
def test_what_does_not_fit_is_refused(
    measure: Any, target: Any, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"model": convolutional(), "inputs": pictures(8), "target": target, "explain": explain_evenly}
    with pytest.raises(error, match=message):
        measure(**(arguments | changed))


def test_models_and_layers_that_cannot_be_divided() -> None:
    with pytest.raises(InputError, match=r"example 0 .* it takes four pictures, of 3 in the batch"):
        difull(convolutional(), pictures(3), 1, explain_evenly)
    with pytest.raises(LayerError, match="unknown layer 'conv'"):
        divide(convolutional(), "conv")
    with pytest.raises(
        LayerError, match=r"layer '8' gives shape \(16, 3\) for pictures of 8 x 6; expected \(N, C, h, w\)"
    ):
        divide(convolutional(), "8")(pictures(4, 16, 12))
    channels_last = nn.Sequential(Returns(lambda x: x.permute(0, 2, 3, 1)), nn.Flatten())
    with pytest.raises(
        LayerError, match=r"layer '0' gives shape \(16, 8, 8, 2\) for pictures of 8 x 8; .* proportions"
    ):
        divide(channels_last, "0")(pictures(4, 16, 16))
    with pytest.raises(LayerError, match=r"layer '0' gives a list for pictures of 8 x 6"):
        divide(nn.Sequential(Returns(lambda x: [x])), "0")(pictures(4, 16, 12))
    with pytest.raises(CAVTypeError, match=r"model is a function; expected a torch\.nn\.Module, of which a copy"):
        divide(lambda x: x)  # type: ignore[arg-type]
    model = convolutional()
    model.forward = lambda x: x  # type: ignore[method-assign, assignment]
    with pytest.raises(ModelError, match="forward of Sequential was replaced on the object"):
        divide(model)
    with pytest.raises(InputError, match="with several classes"):
        difull(convolutional(classes=1), pictures(4), 0, explain_evenly)
