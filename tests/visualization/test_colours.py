"""Colours that can be told apart, also by eyes that lack a kind of cone."""

from __future__ import annotations

import numpy as np
import pytest

from captum_cav.visualization.colours import DIMMED, HEAT, SIGNED, ink, on_white

# What dichromats see, as matrices on linear RGB: Machado, Oliveira and Fernandes, 2009, severity 1.
EYES = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
D65 = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colours: np.ndarray) -> np.ndarray:
    """Colours in sRGB as light."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def lab(colours: np.ndarray, eye: str) -> np.ndarray:
    """Colours in sRGB, shape (n, 3), as CIE L*a*b* to such an eye: equal distances look about equally far apart."""
    seen = np.clip(linear(colours) @ EYES[eye].T, 0, 1)
    xyz = seen @ D65.T / D65.sum(1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def over(colour_map: object, levels: np.ndarray, base: float) -> np.ndarray:
    """The colours of levels over a grey base."""
    colours = colour_map(levels)  # type: ignore[operator]
    return colours[:, 3:] * colours[:, :3] + (1 - colours[:, 3:]) * base


@pytest.mark.parametrize("eye", EYES)
def test_heat_gets_brighter_with_the_contribution(eye: str) -> None:
    levels = np.linspace(0, 1, 33)
    brightness = lab(HEAT(levels)[:, :3], eye)[:, 0]
    assert (np.diff(brightness) > 0).all()
    for base in np.linspace(0, DIMMED, 5):
        shown = lab(over(HEAT, levels, base), eye)
        # Where the picture is light, the first of the heat is as dark as that; from there on it only gets brighter.
        assert (np.diff(shown[9:, 0]) > 0).all()
        assert shown[-1, 0] > shown[0, 0] + 30
        away = np.linalg.norm(shown - shown[0], axis=1)
        assert (away[8:] > 10).all(), "a quarter of the full colour is seen"


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("base", [0.0, 0.3, 0.6, 1.0])
def test_what_raised_is_told_from_what_lowered(eye: str, base: float) -> None:
    levels = np.linspace(0.3, 1, 8)
    raised, lowered = (lab(over(SIGNED, (1 + sign * levels) / 2, base), eye) for sign in (1, -1))
    assert (np.linalg.norm(raised - lowered, axis=1) > 10).all()
    assert np.linalg.norm(raised[-1] - lowered[-1]) > 50


def test_zero_is_clear_in_both() -> None:
    assert HEAT(0.0)[3] == 0
    assert SIGNED(0.5)[3] < 0.01


@pytest.mark.parametrize(
    ("background", "expected"), [("white", "black"), ("#202020", "white"), ((1, 1, 1, 0), "black")]
)
def test_ink_can_be_read(background: object, expected: str) -> None:
    assert ink(background) == expected


def test_ink_can_be_read_on_every_signed_colour() -> None:
    for level in np.linspace(-1, 1, 41):
        paper = float(linear(np.array(on_white(level))) @ D65[1])
        written = {"black": 0.0, "white": 1.0}[ink(on_white(level))]
        darker, lighter = sorted((paper, written))
        assert (lighter + 0.05) / (darker + 0.05) > 4.5, "WCAG's contrast for text"
