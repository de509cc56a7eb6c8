"""Maps and pictures: places, scale, colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from captum_cav.errors import InputError
from captum_cav.visualization import Panel, show_map, show_rows, spatial_map

GREY = np.full((32, 32, 3), 128, dtype=np.uint8)


def drawn(figure: Figure) -> np.ndarray:
    """The figure's first axes as RGB pixels."""
    figure.set_layout_engine("none")
    axes = figure.axes[0]
    axes.set_position((0, 0, 1, 1))
    axes.set_title("")
    figure.set_size_inches(1, 1)
    figure.set_dpi(64)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


@pytest.mark.parametrize(
    ("shape", "picture", "expected"),
    [
        ((1, 5, 7, 7), (224, 224), (1, 7, 7)),
        ((1, 7, 7, 5), (224, 224), (1, 7, 7)),
        ((1, 56, 56, 96), (224, 224), (1, 56, 56)),
        ((1, 7, 7, 7), (224, 224), (1, 7, 7)),
        ((2, 3, 7, 14), (224, 448), (2, 7, 14)),
        ((1, 5, 54, 53), (227, 224), (1, 54, 53)),
        ((1, 196, 8), (224, 224), (1, 14, 14)),
        ((1, 197, 8), (224, 224), (1, 14, 14)),
        ((1, 198, 8), (224, 224), (1, 14, 14)),
        ((1, 1 + 7 * 14, 8), (224, 448), (1, 7, 14)),
    ],
    ids=str,
)
def test_places_are_found_in_every_layout(
    shape: tuple[int, ...], picture: tuple[int, int], expected: tuple[int, ...]
) -> None:
    attributions = torch.randn(shape, dtype=torch.float64)
    found = spatial_map(attributions, picture)
    assert found.shape == expected
    extra = shape[1] - expected[1] * expected[2] if len(shape) == 3 else 0
    torch.testing.assert_close(found.sum(), attributions[:, extra:].sum() if extra else attributions.sum())


def test_channels_are_summed_place_by_place() -> None:
    maps = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(spatial_map(maps, (64, 64)), maps.sum(1))
    torch.testing.assert_close(spatial_map(maps.permute(0, 2, 3, 1), (64, 64)), maps.sum(1))
    tokens = torch.cat([torch.randn(2, 1, 6), maps.flatten(2).transpose(1, 2)], 1)
    torch.testing.assert_close(spatial_map(tokens, (64, 64)), maps.sum(1))


@pytest.mark.parametrize("shape", [(1, 5), (1, 64, 49, 512), (1, 150, 8), (1, 2, 3, 4, 5)], ids=str)
def test_what_has_no_places_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="no places to lay over a picture of 224 x 224 pixels; expected"):
        spatial_map(torch.zeros(shape), (224, 224))


def test_red_raised_and_blue_lowered_the_score_over_grey() -> None:
    ratios = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    figure, _ = show_map(GREY, Panel("layer", ratios, signed=True))
    pixels = drawn(figure)
    red, blue, untouched = pixels[8, 8], pixels[-8, -8], pixels[-4, 4]
    assert red[0] > red[1] + 80
    assert red[0] > red[2] + 80
    assert blue[2] > blue[0] + 80
    assert np.abs(untouched - 128).max() < 12


def test_heat_lies_over_the_coloured_picture_and_leaves_zeros_clear() -> None:
    picture = GREY.copy()
    picture[..., 0] = 40
    figure, _ = show_map(picture, Panel("layer", torch.tensor([[1.0, 0.0], [0.0, -1.0]])))
    pixels = drawn(figure)
    assert np.abs(pixels[-8, -8] - picture[-8, -8]).max() < 12, "what lowered the score is not heat"
    assert pixels[8, 8, 0] > pixels[8, 8, 2] + 50


def test_the_title_tells_resolution_and_what_the_full_colour_means() -> None:
    ratios = torch.zeros(4, 4)
    ratios[0, 0], ratios[3, 3] = 0.02, -0.08
    _, axes = show_map(GREY, Panel("layer3", ratios))
    assert axes.get_title() == "layer3, 4 x 4\nfull colour: 2 % of the score"
    _, axes = show_map(GREY, Panel("layer3", ratios, signed=True))
    assert axes.get_title() == "layer3, 4 x 4\nfull colour: 8 % of the score"
    _, axes = show_map(GREY, Panel("Grad-CAM", ratios, unit=""))
    assert axes.get_title() == "Grad-CAM, 4 x 4\n"


def test_a_single_outlier_does_not_dim_the_rest() -> None:
    ratios = torch.full((32, 32), 0.01)
    ratios[5, 5] = 1.0
    _, axes = show_map(GREY, Panel("layer", ratios))
    assert axes.get_title() == "layer, 32 x 32\nfull colour: 1 % of the score"


@pytest.mark.parametrize(
    ("ratios", "signed", "note"),
    [(-torch.ones(2, 2), False, "nothing positive"), (torch.zeros(2, 2), True, "nothing but zeros")],
)
def test_an_empty_map_shows_the_picture_and_says_so(ratios: torch.Tensor, signed: bool, note: str) -> None:
    figure, axes = show_map(GREY, Panel("layer", ratios, signed))
    assert axes.get_title().endswith(note)
    assert np.abs(drawn(figure)[4:-4, 4:-4] - 128).max() < 4


def test_tiny_ratios_are_drawn_as_large_ones() -> None:
    ratios = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    large = drawn(show_map(GREY, Panel("layer", ratios, signed=True))[0])
    tiny = drawn(show_map(GREY, Panel("layer", ratios * 1e-7, signed=True))[0])
    assert np.abs(large - tiny).max() <= 2


def test_rows_have_labels_titles_and_colour_bars() -> None:
    maps = [Panel(f"layer{index}", torch.randn(4, 4)) for index in range(3)]
    signed = [Panel("picture", None), Panel("layer0", torch.randn(4, 4), signed=True)]
    figure, axes = show_rows(Image.fromarray(GREY), [("tabby", maps), ("boxer", signed)], "Why?")
    assert axes.shape == (2, 3)
    assert [row[0].get_ylabel() for row in axes] == ["tabby", "boxer"]
    assert figure.get_suptitle() == "Why?"
    assert not axes[1, 2].axison, "a cell without a panel is blank"
    labels = [text.get_text() for bar in figure.axes[6:] for text in bar.get_yticklabels()]
    assert any("raised" in label for label in labels)
    assert any("lowered" in label for label in labels)


def test_given_axes_are_drawn_on() -> None:
    figure = Figure()
    axes = figure.subplots()
    assert show_map(GREY, Panel("layer", torch.ones(2, 2)), (figure, axes)) == (figure, axes)
