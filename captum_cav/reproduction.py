"""The paper's experiments on any network, picture and pair of classes: figures 5 to 8, table 1 and the claims.

The paper looks at one photograph of a dog above a cat. Figure 8 tests the map of one of the two classes in the region
of the other object. If the region without its positive spots is disabled, the score should rise. If only the positive
spots of the region are disabled, the score should fall. The paper does not say at which layer features are disabled.
Here they are disabled in the layer of the map, and there is one test for each depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from captum_cav.ablation import Ablation, Standing, ablate, positive_spots, resize_mask
from captum_cav.errors import InputError
from captum_cav.metrics import entropy
from captum_cav.tensors import as_tensor
from captum_cav.visualization.colours import new_figure
from captum_cav.visualization.fonts import fit_fonts, writable

#: Two maps agree if their correlation is at least this number.
AGREEMENT = 0.8
# The network does what the map says if both changes differ by at most this share of the score.
_SAME = 1e-3


@dataclass(frozen=True)
class Disabled:
    """Features that were disabled, the change of the score that the map predicts, and the scores of the network.

    Attributes:
        mask: booleans of shape (h, w), True at the disabled places of the layer.
        said: the change of the score that the map predicts: minus the sum of the contributions of the places.
        ablation: the scores before and after, with the explained class as the first target; None if the mask has no
            place.
    """

    mask: torch.Tensor
    said: float
    ablation: Ablation | None

    @property
    def standing(self) -> Standing | None:
        """Score and rank of the explained class before and after; None if the mask has no place."""
        return self.ablation.standings(self.ablation.targets[:1])[0] if self.ablation else None

    @property
    def change(self) -> float | None:
        """The change of the score of the explained class; None if the mask has no place."""
        standing = self.standing
        return standing.score_after - standing.score_before if standing else None


@dataclass(frozen=True)
class Trial:
    """The test of figure 8 at one layer.

    Attributes:
        layer: the name of the layer.
        rest: the test with the region without its positive spots disabled.
        spots: the test with only the positive spots of the region disabled.
    """

    layer: str
    rest: Disabled
    spots: Disabled

    @property
    def is_foregone(self) -> bool:
        """Whether both changes are exactly those of the map. This is certain if the score is the sum of the map."""
        return all(
            one.standing is None or abs(one.said - (one.change or 0.0)) <= _SAME * abs(one.standing.score_before)
            for one in (self.rest, self.spots)
        )


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and whether the claim holds here.

    Attributes:
        text: the claim.
        verdict: "holds", "holds in part", "does not hold" or "cannot be judged".
        evidence: the numbers, one or more lines.
    """

    text: str
    verdict: str
    evidence: tuple[str, ...]

    def __str__(self) -> str:
        return "\n    ".join([f"{self.verdict}: {self.text}", *self.evidence])


def disable_region(
    model: Callable[..., Any],
    inputs: torch.Tensor,
    layer: str,
    contributions: torch.Tensor,
    region: torch.Tensor,
    targets: Sequence[int],
    class_names: Sequence[str] = (),
) -> Trial:
    """Disable the region of the other object in a layer: first without its positive spots, then only these.

    Positive spots are all places with a positive contribution. Disabled activations are set to 0.

    Args:
        model: maps ``inputs`` to scores of shape (1, classes).
        inputs: one picture, shape (1, C, H, W).
        layer: the qualified name of the layer.
        contributions: shape (h, w), the map of the explained class at that layer, in score units.
        region: booleans of shape (H, W), True at the pixels of the other object. A place of the layer is in the region
            if more than half of the pixels of the place are.
        targets: the classes that the tables show at any rank; the explained class comes first.
        class_names: the names of the classes, in the order of the scores.

    Returns:
        The :class:`Trial`.

    Raises:
        InputError: if no place of the layer is in the region.
        CAVError: as :func:`captum_cav.ablation.ablate`.

    Source: Kakishita and Hattori, figure 8 and table 1.

    Example::

        >>> net = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4, 1))
        >>> _ = net[2].weight.data.copy_(torch.tensor([[1., -1., 2., 3.]])), net[2].bias.data.zero_()
        >>> upper = torch.tensor([[True, True], [False, False]])
        >>> trial = disable_region(net, torch.ones(1, 1, 2, 2), "0", torch.tensor([[1., -1.], [2., 3.]]), upper, [0])
        >>> trial.rest.change, trial.spots.change, trial.is_foregone
        (1.0, -1.0, True)
    """
    grid = (contributions.shape[0], contributions.shape[1])
    inside = resize_mask(region, grid)
    if not inside.any():
        raise InputError(
            f"the region of {int(region.sum())} pixels covers more than half of none of the {grid[0]} x {grid[1]} "
            f"places of layer {layer!r}; expected a larger one."
        )
    spots = positive_spots(contributions) & inside

    def disable(mask: torch.Tensor) -> Disabled:
        said = -float(contributions[mask].sum(dtype=torch.float64))
        found = ablate(model, inputs, layer, mask, targets=targets, class_names=class_names) if mask.any() else None
        return Disabled(mask, said, found)

    return Trial(layer, disable(inside & ~spots), disable(spots))


def effective_area(contributions: torch.Tensor) -> float:
    """The share of the picture over which the positive contributions are spread. A small share means a sharp map.

    The exponential of the entropy of the positive part is a number of places: so many equal places have this entropy.
    Divided by the number of all places it is a share of the picture, which can be compared between layers of different
    resolution.

    Args:
        contributions: shape (h, w).

    Returns:
        A number from 1 / (h w) to 1; NaN if nothing is positive.

    Example::

        >>> round(effective_area(torch.tensor([[1.0, 1.0], [-5.0, 0.0]])), 6)    # two places of four
        0.5
    """
    if not bool((contributions > 0).any()):
        return math.nan
    return float(contributions.numel() ** (entropy(contributions.clamp(min=0)[None]) - 1))


def neighbour_correlation(contributions: torch.Tensor) -> float:
    """The correlation of each place with the places next to it. A scattered map has a low correlation.

    Args:
        contributions: shape (h, w), at least two places in one direction.

    Returns:
        A number from -1 to 1; NaN if all places are equal.

    Example::

        >>> neighbour_correlation(torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]]))
        -1.0
    """
    across = torch.stack([contributions[:, :-1].flatten(), contributions[:, 1:].flatten()])
    down = torch.stack([contributions[:-1].flatten(), contributions[1:].flatten()])
    both = torch.cat([across, down], 1).double()
    # Each pair counts in both orders, because neither place is the first.
    return float(torch.corrcoef(torch.cat([both, both.flip(0)], 1))[0, 1])


def positive_correlation(contributions: torch.Tensor, cam: torch.Tensor) -> float:
    """Pearson's correlation of the positive parts of two maps.

    Args:
        contributions: shape (h, w).
        cam: shape (h, w), the map of Grad-CAM.

    Returns:
        A number from -1 to 1; NaN if a positive part is the same everywhere.

    Example::

        >>> positive_correlation(torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 0.0]]))
        1.0
    """
    both = torch.stack([contributions.flatten(), cam.flatten()]).clamp(min=0)
    return float(torch.corrcoef(both)[0, 1])


def judge(
    classes: Sequence[str],
    maps: Sequence[Sequence[torch.Tensor]],
    cams: Sequence[torch.Tensor | None],
    trials: Sequence[Trial],
) -> list[Claim]:
    """Judge whether the claims of the paper hold.

    Args:
        classes: the names of the two classes; the class that the trials explain comes first.
        maps: for each class the maps of shape (h, w) at each depth, from the last feature layer toward the input.
        cams: for each class the map of Grad-CAM at the first depth; None if the layer has no such map.
        trials: the test of figure 8 at each depth.

    Returns:
        Six claims. A claim about single depths "holds in part" if the claim holds at some of the depths. A depth where
        the score is the sum of the map does not count, because there the result of the test is certain.
    """
    agreements = [
        math.nan if cam is None else positive_correlation(of_class[0], cam)
        for of_class, cam in zip(maps, cams, strict=True)
    ]
    areas = [[effective_area(one) for one in of_class] for of_class in maps]
    neighbours = [[neighbour_correlation(one) for one in of_class] for of_class in maps]
    depths = range(1, len(trials) + 1)
    standings = [trial.spots.standing for trial in trials]
    foregone = "".join(
        f"; ({depth}) does not count, for there the score is the sum of the map"
        for depth, trial in zip(depths, trials, strict=True)
        if trial.is_foregone
    )

    def for_each_class(rows: Sequence[Sequence[float]], form: str) -> tuple[str, ...]:
        return tuple(
            f"{name}: " + ", ".join(f"({depth}) {_shown(value, form)}" for depth, value in enumerate(row, 1))
            for name, row in zip(classes, rows, strict=True)
        )

    def of_score(disabled: Sequence[Disabled], sign: int) -> tuple[str, tuple[str]]:
        found = [
            None if one.change is None or trial.is_foregone else sign * one.change > 0
            for one, trial in zip(disabled, trials, strict=True)
        ]
        answers = ", ".join(f"({depth}) {_answer(one)}" for depth, one in zip(depths, disabled, strict=True))
        return _verdict(found), (answers + foregone,)

    return [
        Claim(
            "at the last feature layer CAV agrees with Grad-CAM",
            _verdict([_unless_nan(one >= AGREEMENT, one) for one in agreements]),
            (
                f"correlation of what is positive, expected at least {AGREEMENT}: "
                + ", ".join(f"{name} {_shown(one, '.2f')}" for name, one in zip(classes, agreements, strict=True)),
            ),
        ),
        Claim(
            "toward the input CAV gets sharper",
            _verdict([_unless_nan(area < row[0], area, row[0]) for row in areas for area in row[1:]]),
            ("effective area, expected below that of (1)", *for_each_class(areas, ".1%")),
        ),
        Claim(
            "nearest to the input CAV is the most scattered",
            _verdict([_unless_nan(min(row) == row[-1], *row) for row in neighbours if len(row) > 1]),
            ("correlation of neighbouring places, expected lowest there", *for_each_class(neighbours, ".2f")),
        ),
        Claim(
            f"with the other object's region disabled but for its positive spots, the score of {classes[0]} rises",
            *of_score([trial.rest for trial in trials], 1),
        ),
        Claim(
            f"with those positive spots alone disabled, the score of {classes[0]} falls",
            *of_score([trial.spots for trial in trials], -1),
        ),
        Claim(
            f"with those positive spots alone disabled, {classes[0]} sinks among the classes (table 1)",
            _verdict([None if one is None else one.rank_after > one.rank_before for one in standings]),
            (
                "rank: "
                + ", ".join(
                    f"({depth}) {f'{one.rank_before} -> {one.rank_after}' if one else 'no such place'}"
                    for depth, one in zip(depths, standings, strict=True)
                ),
            ),
        ),
    ]


def _unless_nan(holds: bool, *numbers: float) -> bool | None:
    return None if any(map(math.isnan, numbers)) else holds


def _shown(number: float, form: str) -> str:
    return "not defined" if math.isnan(number) else format(number, form)


def _answer(disabled: Disabled) -> str:
    if disabled.change is None:
        return "no such place"
    return f"{_signed(disabled.change)} (the map says {_signed(disabled.said)})"


def _signed(number: float) -> str:
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{round(number, 2) + 0.0:+.2f}"


def _verdict(found: Sequence[bool | None]) -> str:
    judged = [one for one in found if one is not None]
    if not judged:
        return "cannot be judged"
    return "holds" if all(judged) else "holds in part" if any(judged) else "does not hold"


def tables(trials: Sequence[Trial]) -> str:
    """Table 1 at each depth, in Markdown: the best classes before, and with each part of the region disabled.

    Args:
        trials: the test of figure 8 at each depth.

    Returns:
        The text.
    """
    parts = []
    for number, trial in enumerate(trials, 1):
        parts.append(f"## ({number}) {trial.layer}")
        for title, one in (
            ("The region without its positive spots is disabled", trial.rest),
            ("Its positive spots alone are disabled", trial.spots),
        ):
            parts.append(f"### {title}")
            parts.append(one.ablation.to_markdown() if one.ablation else "There is no such place.")
    return "\n\n".join(parts) + "\n"


def draw_best(picture: Any, names: Sequence[str], scores: Sequence[float], title: str) -> Figure:
    """Figure 5: the picture and its best classes.

    Args:
        picture: what the network saw.
        names: the names of the best classes, the best class first.
        scores: the scores of these classes.
        title: the title of the figure.

    Returns:
        The figure. No window is opened.
    """
    figure = new_figure(9, 4)
    figure.suptitle(title, fontsize=12, parse_math=False)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    left.imshow(picture)
    left.axis("off")
    places = range(len(names), 0, -1)
    bars = right.barh(places, scores, color="0.6")
    right.bar_label(bars, [f"{score:.2f}" for score in scores], padding=3)
    right.set_yticks(places, [writable(name) for name in names], parse_math=False)
    right.set_xlabel("score before softmax")
    right.margins(x=0.15)
    right.spines[["top", "right"]].set_visible(False)
    fit_fonts(figure)
    return figure


def draw_trials(picture: Any, trials: Sequence[Trial], title: str) -> Figure:
    """Figure 8: what was disabled at each depth, and how the score changed.

    Args:
        picture: what the network saw, an RGB picture.
        trials: the test at each depth.
        title: the title of the figure.

    Returns:
        The figure. No window is opened.
    """
    pixels = as_tensor(np.array(picture))
    figure = new_figure(2.4 * len(trials) + 0.6, 6.4)
    figure.suptitle(title, fontsize=12, parse_math=False)
    grid = figure.subplots(2, len(trials), squeeze=False)
    for row, label in enumerate(("all but its positive spots\ndisabled", "its positive spots alone\ndisabled")):
        grid[row, 0].set_ylabel(label, fontsize=10, fontweight="bold")
        for number, (axis, trial) in enumerate(zip(grid[row], trials, strict=True), 1):
            one = (trial.rest, trial.spots)[row]
            size = (pixels.shape[0], pixels.shape[1])
            covered = F.interpolate(one.mask[None, None].float().cpu(), size, mode="nearest-exact")[0, 0] > 0
            axis.imshow(torch.where(covered[..., None], 255, pixels).numpy())
            axis.set_xticks([])
            axis.set_yticks([])
            standing = one.standing
            said = (
                f"{standing.score_before:.2f} -> {standing.score_after:.2f}, rank {standing.rank_before} -> "
                f"{standing.rank_after}\nmap {_signed(one.said)}, network {_signed(one.change or 0.0)}"
                if standing
                else "no such place\n"
            )
            axis.set_title(f"({number}) {trial.layer}\n{said}", fontsize=9, parse_math=False)
    fit_fonts(figure)
    return figure
