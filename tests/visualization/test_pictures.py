"""Maps over pictures: scale, colours, notes, and what speaks for one class rather than another."""

from __future__ import annotations

import copy
import re
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from captum_cav import LayerCAV, rules
from captum_cav.errors import CAVTypeError, InputError, LayerError, OptionError, TargetError
from captum_cav.visualization import (
    Panel,
    resize_map,
    show_classes,
    show_difference,
    show_layers,
    show_map,
    show_rows,
    show_signed,
)
from tests.visualization.rendering import GREY, assert_fits, levels_of, pixels_of, texts_of


def labels_of(figure: Figure, bar: int = -1) -> list[str]:
    """What is written at a colour bar, from below, and along it."""
    axes = figure.axes[bar]
    return [*(text.get_text() for text in axes.get_yticklabels()), axes.get_ylabel()]


# One map -------------------------------------------------------------------------------------------------------------


def test_red_raised_and_blue_lowered_the_score_over_grey() -> None:
    figure, axes = show_map(GREY, Panel("layer", torch.tensor([[1.0, 0.0], [0.0, -1.0]]), signed=True))
    pixels = pixels_of(figure, axes)
    red, blue, untouched = pixels[8, 8], pixels[-8, -8], pixels[-4, 4]
    assert red[0] > max(red[1], red[2]) + 80
    assert blue[2] > max(blue[0], blue[1]) + 80
    assert np.abs(untouched - 128).max() < 12


def test_heat_is_bright_over_the_picture_in_dark_grey_and_leaves_zeros_clear() -> None:
    picture = GREY.copy()
    picture[:16, :, 0], picture[:16, :, 1] = 64, 192
    figure, axes = show_map(picture, Panel("layer", torch.tensor([[1.0, 0.0], [0.0, -1.0]])))
    pixels = pixels_of(figure, axes)
    assert pixels[8, 8].mean() > 160
    assert pixels[8, 8, 0] > pixels[8, 8, 2] + 50
    for place in ((-8, -8), (-4, 4), (4, -4)):
        assert pixels[place] == pytest.approx(0.55 * 128, abs=8), "neither what lowered the score nor zeros are heat"


@pytest.mark.parametrize(
    ("strongest", "written"),
    [
        (0.02, "2 % of the score"),
        (1.0, "100 % of the score"),
        (12.345, "1200 % of the score"),
        (0.00512, "0.51 % of the score"),
        (0.00012, "0.012 % of the score"),
        (0.000025, "2e-3 % of the score"),
        (1e-6, "1e-4 % of the score"),
        (0.999, "100 % of the score"),
        (31234.0, "3e6 % of the score"),
    ],
)
def test_the_title_tells_resolution_and_what_the_full_colour_means(strongest: float, written: str) -> None:
    ratios = torch.zeros(4, 4)
    ratios[0, 0], ratios[3, 3] = strongest / 4, -strongest
    _, axes = show_map(GREY, Panel("layer3", ratios, signed=True), outlier_percentile=100)
    assert axes.get_title() == f"layer3, 4 x 4\nfull colour: {written}"
    _, axes = show_map(GREY, Panel("layer3", -ratios), outlier_percentile=100)
    assert axes.get_title() == f"layer3, 4 x 4\nfull colour: {written}"


def test_another_unit_is_not_a_percentage_and_without_a_unit_there_is_no_number() -> None:
    _, axes = show_map(GREY, Panel("layer3", torch.eye(2) / 4, unit="score points"))
    assert axes.get_title() == "layer3, 2 x 2\nfull colour: 0.25 score points"
    _, axes = show_map(GREY, Panel("Grad-CAM", torch.eye(2), unit=""))
    assert axes.get_title() == "Grad-CAM, 2 x 2\n"


def test_a_single_outlier_does_not_dim_the_rest_unless_it_is_asked_to() -> None:
    ratios = torch.full((32, 32), 0.01)
    ratios[5, 5] = 1.0
    _, axes = show_map(GREY, Panel("layer", ratios))
    assert axes.get_title() == "layer, 32 x 32\nfull colour: 1 % of the score"
    assert levels_of(axes)[0, 0] == pytest.approx(1)
    _, axes = show_map(GREY, Panel("layer", ratios), outlier_percentile=100)
    assert axes.get_title() == "layer, 32 x 32\nfull colour: 100 % of the score"
    assert levels_of(axes)[0, 0] == pytest.approx(0.01)


@pytest.mark.parametrize("percentile", [0, -1, 101, float("nan")])
def test_an_impossible_percentile_is_refused(percentile: float) -> None:
    with pytest.raises(OptionError) as caught:
        show_map(GREY, Panel("layer", torch.eye(2)), outlier_percentile=percentile)
    assert str(caught.value) == f"outlier_percentile is {percentile!r}; expected a number above 0 and up to 100."


@pytest.mark.parametrize(
    ("ratios", "signed", "note"),
    [(-torch.ones(2, 2), False, "nothing positive"), (torch.zeros(2, 2), True, "nothing but zeros")],
)
def test_an_empty_map_is_blank_and_says_so(ratios: torch.Tensor, signed: bool, note: str) -> None:
    figure, axes = show_map(GREY, Panel("layer", ratios, signed))
    assert axes.get_title() == "layer, 2 x 2\n"
    assert [text.get_text() for text in axes.texts] == [note]
    axes.texts[0].remove()
    assert pixels_of(figure, axes) == pytest.approx(128 if signed else 0.55 * 128, abs=2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("signed", [False, True])
def test_a_map_that_is_not_finite_is_refused_by_name(bad: float, signed: bool) -> None:
    ratios = torch.zeros(3, 4)
    ratios[1, 1] = ratios[2, 3] = bad
    expected = "the map 'layer3' holds NaN or infinity in 2 of 12 places; expected finite numbers."
    with pytest.raises(InputError) as caught:
        show_map(GREY, Panel("layer3", ratios, signed))
    assert str(caught.value) == expected
    with pytest.raises(InputError) as caught:
        show_classes(GREY, [[torch.eye(2), torch.eye(4)], [torch.eye(2), ratios]], ["a", "b"], ["layer4", "layer3"])
    assert str(caught.value) == expected


@pytest.mark.parametrize("shape", [(1, 2, 2), (4,), (0, 3)], ids=str)
def test_what_is_no_map_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        show_map(GREY, Panel("layer", torch.zeros(shape)))
    assert str(caught.value) == (
        f"the map 'layer' has shape {shape}; expected (h, w), one number a place: the contributions of one sample, "
        "summed over channels."
    )


def test_tiny_ratios_are_drawn_as_large_ones() -> None:
    ratios = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    _, large = show_map(GREY, Panel("layer", ratios, signed=True))
    for factor in (1e-7, 1e-30, 1e-43, 1e30):
        _, other = show_map(GREY, Panel("layer", (ratios.double() * factor), signed=True))
        np.testing.assert_allclose(levels_of(other), levels_of(large), atol=1e-5)


def test_maps_of_half_precision_and_on_a_graph_are_drawn() -> None:
    ratios = torch.tensor([[0.25, -0.5], [0.0, 0.125]], requires_grad=True)
    _, plain = show_map(GREY, Panel("layer", ratios, signed=True))
    _, halves = show_map(GREY, Panel("layer", ratios.to(torch.bfloat16), signed=True))
    np.testing.assert_array_equal(levels_of(plain), levels_of(halves))


# Pictures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("L", (32, 32), 128),
        Image.new("RGBA", (32, 32), (128, 128, 128, 255)),
        np.full((32, 32), 128, dtype=np.uint8),
        np.full((32, 32, 1), 128, dtype=np.uint8),
        np.full((32, 32, 3), 128 / 255),
        torch.full((32, 32, 3), 128 / 255),
    ],
    ids=["grey", "transparent", "(h, w)", "(h, w, 1)", "floats", "tensor"],
)
def test_a_picture_comes_in_many_forms(picture: Any) -> None:
    figure, axes = show_map(picture, Panel("picture", None))
    assert pixels_of(figure, axes) == pytest.approx(128)


def test_a_large_photograph_is_drawn_in_the_pixels_of_a_panel() -> None:
    _, axes = show_map(np.zeros((4000, 3000), dtype=np.uint8), Panel("layer", torch.eye(4)))
    assert [image.get_array().shape[:2] for image in axes.images] == [(1024, 768)] * 2


EXPECTED_SHAPE = "expected (height, width, 3), (height, width) or a PIL image"
EXPECTED_NUMBERS = "expected uint8, or numbers from 0 to 1: pass the picture as it was before it was normalized."


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (
            torch.zeros(3, 32, 32),
            f"shape (3, 32, 32); {EXPECTED_SHAPE}; of a tensor (3, height, width) pass tensor.permute(1, 2, 0).",
        ),
        (np.zeros((1, 32, 32, 3)), f"shape (1, 32, 32, 3); {EXPECTED_SHAPE}."),
        (np.zeros((0, 32, 3)), f"shape (0, 32, 3); {EXPECTED_SHAPE}."),
        (np.linspace(-2.1, 2.64, 12).reshape(2, 2, 3), f"float64 from -2.1 to 2.64; {EXPECTED_NUMBERS}"),
        (np.full((2, 2, 3), np.nan), f"float64 from nan to nan; {EXPECTED_NUMBERS}"),
    ],
    ids=["channels first", "batch", "empty", "normalized", "NaN"],
)
def test_what_is_no_picture_is_refused(picture: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        show_map(picture, Panel("picture", None))
    assert str(caught.value).removeprefix("the picture ") in (f"has {message}", f"holds {message}")


# Scales --------------------------------------------------------------------------------------------------------------

# A map even over the picture: its density is its sum, whatever its grid.
EVEN = {(cells, total): torch.full((cells, cells), total / cells**2) for cells in (2, 4) for total in (0.4, 1.6, 6.4)}


def scaled(scale: Any) -> tuple[Figure, np.ndarray]:
    rows = [
        ("a", [Panel("2", EVEN[2, 0.4]), Panel("4", EVEN[4, 1.6], signed=True)]),
        ("b", [Panel("Grad-CAM", 1000 * EVEN[2, 1.6], unit=""), Panel("4", EVEN[4, 6.4])]),
    ]
    figure, axes = show_rows(GREY, rows, scale=scale)
    return figure, axes


def test_each_map_has_a_scale_of_its_own_in_shares_of_a_cell() -> None:
    figure, axes = scaled("each")
    assert [levels_of(one).max() for one in axes.flat] == pytest.approx([1, 1, 1, 1])
    assert [one.get_title() for one in axes.flat] == [
        "2, 2 x 2\nfull colour: 10 % of the score",
        "4, 4 x 4\nfull colour: 10 % of the score",
        "Grad-CAM, 2 x 2\n",
        "4, 4 x 4\nfull colour: 40 % of the score",
    ]
    assert [labels_of(figure, bar)[-1] for bar in (-2, -1)] == ["", ""]


def test_a_row_shares_a_scale_by_area() -> None:
    figure, axes = scaled("row")
    assert [levels_of(one).max() for one in axes.flat] == pytest.approx([0.25, 1, 1, 1])
    assert [one.get_title() for one in axes.flat] == ["2, 2 x 2", "4, 4 x 4", "Grad-CAM, 2 x 2", "4, 4 x 4"]
    assert [labels_of(figure, bar)[-1] for bar in (-2, -1)] == [
        "full colour:\n1.6 % of the score\nper 1 % of the picture",
        "full colour:\n6.4 % of the score\nper 1 % of the picture",
    ]


def test_all_share_a_scale_but_for_other_units() -> None:
    figure, axes = scaled("all")
    assert [levels_of(one).max() for one in axes.flat] == pytest.approx([0.0625, 0.25, 1, 1])
    expected = "full colour:\n6.4 % of the score\nper 1 % of the picture"
    assert [labels_of(figure, bar)[-1] for bar in (-2, -1)] == [expected, expected]


def test_a_shared_scale_shows_in_the_colours() -> None:
    figure, axes = scaled("all")
    weak = pixels_of(figure, axes[0, 1])
    figure, axes = scaled("each")
    full = pixels_of(figure, axes[0, 1])
    assert full[8, 8].tolist() == [216, 0, 0]
    assert 140 < weak[8, 8, 0] < 216
    assert weak[8, 8, 1] > 80


def test_a_faint_map_on_a_shared_scale_gives_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    _, axes = show_layers(GREY, [torch.ones(2, 2), torch.ones(2, 2) * 1e-9], ["a", "b"], scale="all")
    assert levels_of(axes[1]).max() == pytest.approx(1e-9)
    assert not recwarn.list


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(OptionError) as caught:
        scaled("rows")
    assert str(caught.value) == 'scale is \'rows\'; expected "each", "row" or "all".'


# Several maps --------------------------------------------------------------------------------------------------------


def test_rows_have_labels_titles_and_colour_bars() -> None:
    maps = [Panel(f"layer{index}", torch.randn(4, 4)) for index in range(3)]
    signed = [Panel("picture", None), Panel("layer0", torch.randn(4, 4), signed=True)]
    figure, axes = show_rows(Image.fromarray(GREY), [("tabby", maps), ("boxer", signed)], "Why?")
    assert axes.shape == (2, 3)
    assert [row[0].get_ylabel() for row in axes] == ["tabby", "boxer"]
    assert figure.get_suptitle() == "Why?"
    assert not axes[1, 2].axison, "a cell without a panel is blank"
    assert labels_of(figure, -2) == ["0", "raised\nthe score", ""]
    assert labels_of(figure) == ["lowered\nthe score", "0", "raised\nthe score", ""]


def test_nothing_to_draw_is_refused() -> None:
    for rows in ([], [("tabby", [])]):
        with pytest.raises(InputError, match=r"^there are no panels to draw; expected at least one map.$"):
            show_rows(GREY, rows)


def layers_of_one_class() -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """A picture, what ``attribute`` gives for two layers of a small network, and their maps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(80, 3))
    picture = torch.rand(1, 3, 32, 32)
    ratios = LayerCAV(net, ["1", "2"], normalize="abs").attribute(picture, 1)
    return picture[0].permute(1, 2, 0), ratios, [one[0].sum(0) for one in ratios]


@pytest.mark.parametrize("signed", [False, True])
def test_layers_are_drawn_from_contributions_as_from_maps(signed: bool) -> None:
    picture, ratios, maps = layers_of_one_class()
    figure, axes = show_layers(picture, ratios, ["1", "2"], "boxer", signed=signed, outlier_percentile=100)
    assert axes.shape == (2,)
    assert figure.get_suptitle() == "boxer"
    for one, ratio in zip(axes, maps, strict=True):
        laid = resize_map(ratio, (32, 32)) if signed else resize_map(ratio, (32, 32)).clamp(min=0)
        np.testing.assert_allclose(levels_of(one), laid / laid.abs().max(), atol=1e-6)
    assert [one.get_title().split("\n")[0] for one in axes] == ["1, 8 x 8", "2, 4 x 4"]
    _, again = show_layers(picture, maps, ["1", "2"], signed=signed, outlier_percentile=100)
    for one, other in zip(axes, again, strict=True):
        np.testing.assert_array_equal(levels_of(one), levels_of(other))


def test_one_signed_map_has_a_legend() -> None:
    picture, ratios, maps = layers_of_one_class()
    figure, axes = show_signed(picture, ratios[0], "layer 1")
    assert labels_of(figure) == ["lowered\nthe score", "0", "raised\nthe score", ""]
    laid = resize_map(maps[0], (32, 32)).numpy()
    assert (np.sign(levels_of(axes)) == np.sign(laid)).all()


def test_classes_are_rows_and_depths_are_columns() -> None:
    maps = [[EVEN[2, 0.4], EVEN[4, 0.4]], [EVEN[2, 1.6], EVEN[4, 6.4]]]
    figure, axes = show_classes(GREY, maps, ["tabby", "boxer"], ["deep", "early"], "Why?")
    assert [[one.get_title().split("\n")[1] for one in row] for row in axes] == [
        ["full colour: 10 % of the score", "full colour: 2.5 % of the score"],
        ["full colour: 40 % of the score", "full colour: 40 % of the score"],
    ]
    assert [one.get_ylabel() for one in axes[:, 0]] == ["tabby", "boxer"]
    assert figure.get_suptitle() == "Why?"


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"^there are 2 maps and 1 names; expected one name for each map.$"):
        show_layers(GREY, [torch.eye(2), torch.eye(2)], ["a"])
    with pytest.raises(InputError, match=r"^there are maps of 1 classes and 2 names; expected one name for each.$"):
        show_classes(GREY, [[torch.eye(2)]], ["a", "b"], ["layer"])
    with pytest.raises(InputError, match=re.escape("the contributions of 4 samples; pass those of one, as contrib")):
        show_layers(GREY, [torch.zeros(4, 3, 2, 2)], ["a"])
    with pytest.raises(CAVTypeError, match=r"^the map 'a' is a tuple; expected a tensor.$"):
        show_layers(GREY, [(torch.zeros(2, 2),)], ["a"])  # type: ignore[list-item]


# What speaks for one class rather than another -----------------------------------------------------------------------


def network(activation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 4, 4), activation, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(80, 3)]
    return nn.Sequential(*layers).double()


def drawn_difference(
    net: nn.Module, inputs: torch.Tensor, targets: tuple[int, int], **options: Any
) -> list[np.ndarray]:
    """What was drawn for layers 1 and 2, in units of each map's largest value."""
    picture = inputs[0].permute(1, 2, 0)
    _, axes = show_difference(
        picture, net, ["1", net[2]], inputs, targets, ("a", "b"), outlier_percentile=100, **options
    )
    return [levels_of(one) for one in axes]


def test_the_difference_is_activation_times_gradient_of_the_difference_where_that_is_exact() -> None:
    net, inputs = network(nn.ReLU()), torch.rand(1, 3, 32, 32, dtype=torch.float64)
    drawn = drawn_difference(net, inputs, (2, 0))
    first = net[1](net[0](inputs))
    second = net[2](first)
    scores = net[4](net[3](second))[0]
    gradients = torch.autograd.grad(scores[2] - scores[0], [first, second])
    for levels, activation, gradient in zip(drawn, (first, second), gradients, strict=True):
        laid = resize_map((activation * gradient)[0].sum(0).detach(), (32, 32))
        np.testing.assert_allclose(levels, laid / laid.abs().max(), atol=1e-9)


@pytest.mark.parametrize(
    "chosen", [None, "gamma", {nn.Conv2d: rules.GammaRule(0.5), nn.Linear: rules.EpsilonRule(1.0)}]
)
def test_the_difference_is_that_of_the_contributions_to_both_scores(chosen: Any) -> None:
    net, inputs = network(nn.GELU()), torch.rand(1, 3, 32, 32, dtype=torch.float64)
    drawn = drawn_difference(net, inputs, (2, 0), rules=chosen)
    both = LayerCAV(net, ["1", "2"], rules=chosen, normalize=None).attribute_targets(inputs, [2, 0])
    for levels, first, second in zip(drawn, *both, strict=True):
        laid = resize_map((first - second)[0].sum(0), (32, 32))
        np.testing.assert_allclose(levels, laid / laid.abs().max(), atol=1e-9)


def test_the_difference_is_not_that_of_two_pictures() -> None:
    """Both scores are raised in the left half and the first more so, but the left has a smaller share of it."""
    net = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(2, 2, bias=False))
    net[2].weight.data = torch.tensor([[3.0, 3.0], [2.0, 1.0]])
    inputs = torch.ones(1, 1, 1, 2)
    shares = LayerCAV(net, "0").attribute_targets(inputs, [0, 1])
    assert float((shares[0] - shares[1])[0, 0, 0, 0]) < 0
    _, (axes,) = show_difference(np.ones((1, 2)), net, "0", inputs, (0, 1), ("a", "b"), outlier_percentile=100)
    np.testing.assert_allclose(levels_of(axes), [[0.5, 1.0]])
    assert axes.get_title() == "0, 1 x 2\nfull colour: 2 score points"


def test_the_difference_names_both_classes_and_their_scores() -> None:
    net, inputs = network(nn.ReLU()), torch.rand(1, 3, 32, 32, dtype=torch.float64)
    scores = net(inputs)[0]
    figure, axes = show_difference(
        inputs[0].permute(1, 2, 0), net, ["1", "2"], inputs, (2, 0), ("German $hepherd", "tabby"), scale="row"
    )
    assert figure.get_suptitle() == (
        f"What speaks for German $hepherd (score {scores[2]:.2f}) rather than tabby ({scores[0]:.2f})"
    )
    low, zero, high, number = labels_of(figure)
    assert (low, zero, high) == ("for tabby", "0", "for German\n$hepherd")
    assert re.fullmatch(r"full colour:\n\S+ score points\nper 1 % of the picture", number)
    assert [one.get_title() for one in axes] == ["1, 8 x 8", "2, 4 x 4"]


def test_the_difference_takes_a_function_and_captums_targets_and_leaves_the_model_alone() -> None:
    net, inputs = network(nn.ReLU()), torch.rand(1, 3, 32, 32, dtype=torch.float64)
    before = copy.deepcopy(net.state_dict())
    picture = inputs[0].permute(1, 2, 0)
    state = torch.get_rng_state()
    _, (plain,) = show_difference(picture, net, "1", inputs, (2, 0), ("a", "b"))
    assert torch.equal(torch.get_rng_state(), state)
    _, (wrapped,) = show_difference(
        picture, lambda x: net(x)[:, None], net[1], (inputs,), ((0, 2), [(0, 0)]), ("a", "b")
    )
    np.testing.assert_allclose(levels_of(plain), levels_of(wrapped))
    assert plain.get_title().startswith("1, 8 x 8\n")
    assert wrapped.get_title().startswith("ReLU, 8 x 8\n")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"layer": "9"}, LayerError, "unknown layer '9'"),
        ({"targets": (0, 7)}, TargetError, "target is 7, out of range"),
        ({"rules": {"0": rules.GammaRule(0.1)}}, LayerError, "use the module itself, its type or a torch function"),
        ({"inputs": torch.rand(2, 3, 32, 32, dtype=torch.float64)}, InputError, "the contributions of 2 samples"),
    ],
    ids=["layer", "target", "rule by name", "batch"],
)
def test_a_difference_that_cannot_be_is_refused(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"layer": "1", "inputs": torch.rand(1, 3, 32, 32, dtype=torch.float64), "targets": (0, 1)}
    with pytest.raises(error, match=message):
        show_difference(np.zeros((32, 32)), network(nn.ReLU()), classes=("a", "b"), **{**arguments, **changed})


# Figures and axes ----------------------------------------------------------------------------------------------------


def test_given_axes_are_drawn_on() -> None:
    figure = Figure()
    axes = figure.subplots()
    assert show_map(GREY, Panel("layer", torch.ones(2, 2)), (figure, axes)) == (figure, axes)
    assert show_signed(GREY, torch.ones(2, 2), axes=(figure, axes)) == (figure, axes)


def test_a_grid_of_pyplots_is_drawn_on_and_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("shown"))
    open_before = plt.get_fignums()
    show_layers(GREY, [torch.eye(2)], ["a"])
    assert plt.get_fignums() == open_before, "a figure of ours is not pyplot's to show"
    figure, given = plt.subplots(2, 3)
    try:
        drawn, axes = show_classes(GREY, [[torch.eye(2)] * 3] * 2, ["a", "b"], ["1", "2", "3"], axes=(figure, given))
        assert drawn is figure
        assert (axes == given).all()
        assert figure.get_suptitle() == ""
        _, (one, other) = show_layers(GREY, [torch.eye(2)] * 2, ["1", "2"], axes=(figure, given[0, :2]))
        assert (one, other) == (given[0, 0], given[0, 1])
        with pytest.raises(InputError) as caught:
            show_layers(GREY, [torch.eye(2)] * 2, ["1", "2"], axes=(figure, given))
        assert str(caught.value) == (
            "axes holds 6 axes; expected 1 x 2, one for each panel, as plt.subplots(1, 2) returns them."
        )
    finally:
        plt.close(figure)


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_figures_are_dark_on_light_in_every_notebook(style: str) -> None:
    with plt.style.context(style):
        figure, _ = show_classes(
            GREY, [[torch.eye(2), -torch.eye(2)]], ["tabby"], ["a", "b"], "Why?", scale="all", signed=False
        )
        texts = texts_of(figure)
    assert figure.get_facecolor() == (1, 1, 1, 1)
    assert len(texts) > 6
    assert {text.get_color() for text in texts} == {"black"}


def test_on_a_users_dark_figure_text_is_white() -> None:
    figure = Figure(facecolor="#202020")
    show_layers(GREY, [torch.eye(2), torch.eye(4)], ["a", "b"], "Why?", axes=(figure, figure.subplots(1, 2)))
    assert {text.get_color() for text in texts_of(figure)} == {"white"}


LONG_LAYER = "encoder.layers.encoder_layer_11.self_attention.out_projection"
LONG_CLASS = "Staffordshire bullterrier, Staffordshire bull terrier\nscore 5.47"


@pytest.mark.parametrize("scale", ["each", "row"])
@pytest.mark.parametrize(
    ("columns", "rows", "shape"), [(1, 1, (224, 224)), (7, 2, (224, 224)), (3, 1, (120, 300)), (2, 2, (300, 120))]
)
def test_long_names_fit(columns: int, rows: int, shape: tuple[int, int], scale: Any) -> None:
    grids = [1, 7, 14, 28, 56, 112, 224][:columns]
    torch.manual_seed(0)
    maps = [[torch.randn(grid, grid) for grid in grids] for _ in range(rows)]
    maps[-1][-1] = -torch.ones(3, 3)
    title = "Where a network with a name that is rather long found its scores, from the last layer to the input"
    figure, _ = show_classes(np.zeros(shape), maps, [LONG_CLASS] * rows, [LONG_LAYER] * columns, title, scale=scale)
    assert_fits(figure)


def test_one_place_is_a_map_too() -> None:
    figure, axes = show_signed(GREY, torch.tensor([[-0.3]]), "pooled")
    assert axes.get_title() == "pooled, 1 x 1\nfull colour: 30 % of the score"
    np.testing.assert_allclose(levels_of(axes), -1, atol=1e-6)
    assert_fits(figure)
