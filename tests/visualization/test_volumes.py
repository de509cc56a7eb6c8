"""Volumes and videos: which slice lies where, in which colour, and whether every contribution is drawn."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from captum_cav.errors import InputError, OptionError
from captum_cav.visualization import animate, resize_map, show_frames, show_projections, show_slices
from tests.visualization.rendering import assert_fits, levels_of, pixels_of


def a_map() -> torch.Tensor:
    """On a grid of 4 x 2 x 3: 0.5 in slice 1 in the corner, -0.25 in slice 3 in the other corner."""
    ratios = torch.zeros(4, 2, 3)
    ratios[1, 0, 0], ratios[3, 1, 2] = 0.5, -0.25
    return ratios


def test_each_slice_has_its_picture_its_colours_and_its_share() -> None:
    volume = torch.arange(4.0)[:, None, None].expand(4, 2, 3)
    figure, axes = show_slices(volume, a_map(), "scan")
    assert [axis.get_title() for axis in axes] == ["slice 0\n0", "slice 1\n+50 %", "slice 2\n0", "slice 3\n-25 %"]
    greys = [float(axis.images[0].get_array().mean()) for axis in axes]
    np.testing.assert_allclose(greys, [0.3, 0.3 + 0.7 / 3, 0.3 + 1.4 / 3, 1.0])
    np.testing.assert_allclose([levels_of(axis) for axis in axes], a_map() * 2 / 0.995, atol=0.01)
    assert figure.axes[-1].get_ylabel() == "full colour:\n3 % of the score\nper 1 % of a panel"
    assert_fits(figure)
    pixels = pixels_of(figure, axes[1])
    assert pixels[16, 10].tolist() == [216, 0, 0]


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_no_contribution_is_left_out(dim: int, count: int) -> None:
    ratios = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0)).double()
    volume = np.zeros((7, 5, 6))
    _, axes = show_slices(volume, ratios, dim=dim, count=count, outlier_percentile=100, unit="points")
    slices = volume.shape[dim]
    assert len(axes) == min(count, slices)
    totals = [float(axis.get_title().split("\n")[1]) for axis in axes]
    assert sum(totals) == pytest.approx(float(ratios.sum()), rel=0.05)
    shown = np.array([levels_of(axis).sum() for axis in axes])
    laid = resize_map(ratios, volume.shape).movedim(dim, 0)
    expected = [float(laid[group].sum()) for group in np.array_split(np.arange(slices), len(axes))]
    np.testing.assert_allclose(shown / shown.sum(), expected / np.sum(expected), rtol=1e-6)


def test_heat_shows_only_what_raised_the_score() -> None:
    _, axes = show_slices(np.ones((4, 2, 3)), a_map(), signed=False)
    assert axes[1].images[-1].get_clim() == (0, 1)
    assert levels_of(axes[3]).min() < 0
    assert axes[1].images[0].get_array().max() <= 0.55
    _, axes = show_slices(np.ones((4, 2, 3)), -a_map().abs(), signed=False)
    assert axes[0].texts[0].get_text() == "nothing positive"
    _, axes = show_slices(np.ones((4, 2, 3)), 0 * a_map())
    assert axes[0].texts[0].get_text() == "nothing but zeros"


def test_contributions_of_a_layer_are_summed_over_channels() -> None:
    of_layer = torch.stack([a_map(), 2 * a_map()])[None].requires_grad_()
    _, axes = show_slices(torch.rand(4, 2, 3), of_layer)
    assert axes[1].get_title() == "slice 1\n+150 %"


def test_frames_are_named_by_their_time() -> None:
    video = torch.rand(8, 4, 6, 3)
    _, axes = show_frames(video, a_map(), count=4, duration=2.0)
    assert [axis.get_title().split("\n")[0] for axis in axes] == [
        "0 to 0.5 s",
        "0.5 to 1 s",
        "1 to 1.5 s",
        "1.5 to 2 s",
    ]
    figure, axes = show_frames(video, a_map(), "a long title of what happens in this video of a dog " * 3, count=4)
    assert [axis.get_title().split("\n")[0] for axis in axes] == [f"frames {k} to {k + 1}" for k in (0, 2, 4, 6)]
    np.testing.assert_allclose(np.mean(axes[0].images[0].get_array()), 0.3 + 0.7 * video[1].mean(), atol=0.05)
    assert_fits(figure)


def test_each_projection_holds_all_contributions() -> None:
    figure, axes = show_projections(np.random.default_rng(0).random((4, 2, 3)), a_map(), outlier_percentile=100)
    for dim, axis in enumerate(axes):
        expected = a_map().sum(dim)
        np.testing.assert_allclose(levels_of(axis) * 0.5 * 12, expected * expected.numel(), atol=1e-6)
    assert [axis.get_xlabel() for axis in axes] == ["width \N{RIGHTWARDS ARROW}"] * 2 + ["height \N{RIGHTWARDS ARROW}"]
    assert [axis.get_ylabel()[2:] for axis in axes] == ["height", "depth", "depth"]
    assert_fits(figure)


def test_voxels_may_be_longer_in_one_dimension() -> None:
    spacing = (3.0, 2.0, 1.0)
    _, axes = show_projections(np.ones((4, 2, 3)), a_map(), spacing=spacing)
    assert [axis.get_aspect() for axis in axes] == [2.0, 3.0, 1.5]
    for dim, aspect in enumerate((2.0, 3.0, 1.5)):
        _, axes = show_slices(np.ones((4, 2, 3)), a_map(), spacing=spacing, dim=dim)
        assert axes[0].get_aspect() == aspect


def test_an_animation_shows_every_frame_and_can_be_written(tmp_path: Path) -> None:
    video = torch.arange(4.0)[:, None, None].expand(4, 4, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        animation = animate(video, a_map(), "a dog", word="slice", frames_per_second=4)
        animation.save(tmp_path / "dog.gif", writer="pillow", dpi=40)
    with Image.open(tmp_path / "dog.gif") as written:
        assert getattr(written, "n_frames", 1) == 4
        assert written.info["duration"] == 250
        frames = []
        for frame in range(4):
            written.seek(frame)
            frames.append(np.asarray(written.convert("RGB")).astype(int))
    red = [int(((one[..., 0] > 200) & (one[..., 1:].max(2) < 60)).sum()) for one in frames]
    assert red[1] > 1.5 * max(red[0], red[2], red[3])


def test_axes_of_yours_are_drawn_on() -> None:
    figure, given = plt.subplots(2, 2)
    try:
        found, axes = show_slices(np.ones((4, 2, 3)), a_map(), axes=(figure, given))
        assert found is figure
        assert axes.tolist() == given.flatten().tolist()
        with pytest.raises(InputError, match="axes holds 4 axes; expected 3"):
            show_projections(np.ones((4, 2, 3)), a_map(), axes=(figure, given))
    finally:
        plt.close(figure)


@pytest.mark.parametrize("draw", [show_slices, show_frames, show_projections, animate])
def test_what_is_no_volume_is_refused(draw: Any) -> None:
    with pytest.raises(InputError, match=r"shape \(4, 4\); expected \(D, H, W\)"):
        draw(np.ones((4, 4)), a_map())
    with pytest.raises(InputError, match=r"pass volume\[0\]"):
        draw(np.ones((1, 4, 4, 4)), a_map())
    with pytest.raises(InputError, match=r"volume.permute\(1, 2, 3, 0\)"):
        draw(np.ones((3, 4, 4, 4)), a_map())
    with pytest.raises(InputError, match="'volume' holds NaN"):
        draw(np.full((4, 4, 4), np.nan), a_map())
    with pytest.raises(InputError, match=r"'conv' has shape \(4, 4\); expected \(d, h, w\)"):
        draw(np.ones((4, 4, 4)), torch.ones(4, 4), "conv")
    with pytest.raises(InputError, match=r"2 samples; pass those of one, as contributions\[:1\]"):
        draw(np.ones((4, 4, 4)), torch.ones(2, 1, 4, 4, 4), "conv")


def test_options_that_cannot_be_used_are_refused() -> None:
    volume = np.ones((4, 2, 3))
    for said, call in (
        ("dim is 3; expected 0", lambda: show_slices(volume, a_map(), dim=3)),
        ("count is 0", lambda: show_slices(volume, a_map(), count=0)),
        ("count is 0", lambda: show_frames(volume, a_map(), count=0)),
        (r"spacing is \(1, 0, 1\)", lambda: show_projections(volume, a_map(), spacing=(1, 0, 1))),
        ("names holds 2 names; expected three", lambda: show_projections(volume, a_map(), names=("a", "b"))),
        ("frames_per_second is 0", lambda: animate(volume, a_map(), frames_per_second=0)),
    ):
        with pytest.raises(OptionError, match=said):
            call()
