"""The paper's experiments: the test of figure 8 by hand, what is said of the claims, and the command."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from captum_cav import LayerCAV, cli
from captum_cav.ablation import box_mask
from captum_cav.reproduction import (
    Claim,
    Trial,
    disable_region,
    draw_best,
    draw_trials,
    effective_area,
    judge,
    neighbour_correlation,
    positive_correlation,
    tables,
)
from captum_cav.visualization import spatial_map
from tests.support.networks import fixed

SIZE = (12, 16)
UPPER = box_mask((0.0, 0.0, 1.0, 0.5), SIZE)
NAMES = ("tabby", "shepherd", "pug")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 5, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(60, 3)
    ).double()


def trial(layer: str) -> tuple[Trial, torch.Tensor]:
    net, x = network(), fixed(1, 3, *SIZE)
    contributions = spatial_map(LayerCAV(net, layer, normalize=None).attribute(x, 0), SIZE)[0]
    return disable_region(net, x, layer, contributions, UPPER, [0, 1], NAMES), contributions


# What is measured -----------------------------------------------------------------------------------------------


def test_the_region_is_disabled_in_two_parts_as_by_hand() -> None:
    net, x = network(), fixed(1, 3, *SIZE)
    found, contributions = trial("1")
    with torch.no_grad():
        maps, before = net[:2](x), net(x)
        for part, sign in ((found.rest, -1), (found.spots, 1)):
            mask = torch.zeros(6, 8, dtype=torch.bool)
            mask[:3] = contributions[:3] > 0 if sign > 0 else contributions[:3] <= 0
            assert torch.equal(part.mask, mask)
            after = net[2:](maps * ~mask)
            assert part.ablation is not None
            torch.testing.assert_close(part.ablation.after, after)
            assert part.change == pytest.approx(float(after[0, 0] - before[0, 0]))
            assert part.said == pytest.approx(-float(contributions[mask].sum()))
            assert sign * part.said < 0
    assert not found.is_foregone


def test_where_the_score_is_the_sum_of_the_map_the_result_is_known() -> None:
    found, _ = trial("3")
    assert found.is_foregone
    assert found.rest.change == pytest.approx(found.rest.said)


def test_a_region_without_positive_spots_has_none_to_disable() -> None:
    found = disable_region(network(), fixed(1, 3, *SIZE), "1", -torch.ones(6, 8), UPPER, [0], NAMES)
    assert found.spots.ablation is found.spots.standing is found.spots.change is None
    assert found.rest.mask.sum() == 24
    assert "There is no such place." in tables([found])


def test_effective_area_is_the_share_of_places_that_are_equally_filled() -> None:
    for filled in (1, 3, 20):
        contributions = -torch.rand(4, 5)
        contributions.view(-1)[:filled] = 2.0
        assert effective_area(contributions) == pytest.approx(filled / 20)
    # The same picture at twice the resolution covers the same area.
    contributions = fixed(4, 5)
    finer = contributions.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert effective_area(finer) == pytest.approx(effective_area(contributions))


def test_correlations_are_numpy_s() -> None:
    one, other = fixed(5, 7).numpy(), fixed(5, 7, seed=2).numpy()
    pairs = [(one[i, j], one[i, j + 1]) for i in range(5) for j in range(6)]
    pairs += [(one[i, j], one[i + 1, j]) for i in range(4) for j in range(7)]
    pairs += [(b, a) for a, b in pairs]
    expected = np.corrcoef(np.array(pairs).T)[0, 1]
    assert neighbour_correlation(torch.from_numpy(one)) == pytest.approx(expected)
    expected = np.corrcoef(one.clip(0).ravel(), other.clip(0).ravel())[0, 1]
    assert positive_correlation(torch.from_numpy(one), torch.from_numpy(other)) == pytest.approx(expected)


# What is said of the claims -------------------------------------------------------------------------------------

SMOOTH = torch.arange(16.0).reshape(4, 4) + 1
SHARP = torch.zeros(8, 8).index_put((torch.tensor([2, 5]), torch.tensor([2, 3])), torch.tensor(1.0))


def verdicts(claims: list[Claim]) -> list[str]:
    return [claim.verdict for claim in claims]


def test_claims_are_judged_and_their_numbers_told() -> None:
    first, _ = trial("3")
    second, _ = trial("1")
    claims = judge(["tabby", "shepherd"], [[SMOOTH, SHARP]] * 2, [SMOOTH, -SMOOTH + 20], [first, second])
    rises, falls = second.rest.change, second.spots.change
    assert rises is not None
    assert falls is not None
    assert rises > 0 > falls
    standing = second.spots.standing
    assert standing is not None
    sinks = [
        one.spots.standing.rank_after > one.spots.standing.rank_before for one in (first, second) if one.spots.standing
    ]
    rank = {2: "holds", 1: "holds in part", 0: "does not hold"}[sum(sinks)]
    assert verdicts(claims) == ["holds in part", "holds", "holds", "holds", "holds", rank]
    assert [str(claim) for claim in claims[:3]] == [
        """\
holds in part: at the last feature layer CAV agrees with Grad-CAM
    correlation of what is positive, expected at least 0.8: tabby 1.00, shepherd -1.00""",
        """\
holds: toward the input CAV gets sharper
    effective area, expected below that of (1)
    tabby: (1) 84.8%, (2) 3.1%
    shepherd: (1) 84.8%, (2) 3.1%""",
        """\
holds: nearest to the input CAV is the most scattered
    correlation of neighbouring places, expected lowest there
    tabby: (1) 0.77, (2) -0.04
    shepherd: (1) 0.77, (2) -0.04""",
    ]
    assert claims[3].evidence[0] == (
        f"(1) {first.rest.change:+.2f} (the map says {first.rest.said:+.2f}), "
        f"(2) {rises:+.2f} (the map says {second.rest.said:+.2f}); "
        "(1) does not count, for there the score is the sum of the map"
    )
    assert f"(2) {standing.rank_before} -> {standing.rank_after}" in claims[5].evidence[0]


def test_claims_that_do_not_hold_are_named_so() -> None:
    second, _ = trial("1")
    turned = Trial("1", second.spots, second.rest)
    claims = judge(["tabby", "shepherd"], [[SHARP, SMOOTH]] * 2, [-SHARP + 1] * 2, [turned, turned])
    assert verdicts(claims)[:5] == ["does not hold"] * 5
    claims = judge(["tabby", "shepherd"], [[SMOOTH, SHARP]] * 2, [SMOOTH, SMOOTH], [second, turned])
    assert verdicts(claims)[3:5] == ["holds in part"] * 2


def test_what_cannot_be_judged_is_named_so() -> None:
    empty = disable_region(network(), fixed(1, 3, *SIZE), "1", -torch.ones(6, 8), UPPER, [0], NAMES)
    claims = judge(["tabby", "shepherd"], [[SMOOTH], [SMOOTH]], [None, None], [empty])
    assert verdicts(claims)[:3] == ["cannot be judged"] * 3
    nothing = [[torch.zeros(4, 4), SHARP]] * 2
    assert verdicts(judge(["tabby", "shepherd"], nothing, [SMOOTH] * 2, [empty] * 2))[:3] == ["cannot be judged"] * 3
    assert verdicts(claims)[4:] == ["cannot be judged"] * 2
    assert claims[0].evidence == (
        "correlation of what is positive, expected at least 0.8: tabby not defined, shepherd not defined",
    )
    assert claims[4].evidence == ("(1) no such place",)
    assert claims[5].evidence == ("rank: (1) no such place",)


# Pictures -------------------------------------------------------------------------------------------------------


def test_what_was_disabled_is_white_in_the_picture() -> None:
    found, _ = trial("1")
    picture = Image.new("RGB", (16, 12), (90, 10, 10))
    figure = draw_trials(picture, [found, found], "title")
    for axis, part in zip(figure.axes, (found.rest, found.rest, found.spots, found.spots), strict=True):
        drawn = axis.images[0].get_array()
        covered = part.mask.repeat_interleave(2, 0).repeat_interleave(2, 1).numpy()
        assert (drawn == np.where(covered[..., None], 255, [90, 10, 10])).all()
    said = figure.axes[2].get_title()
    assert said == (
        f"(1) 1\n{found.spots.standing.score_before:.2f} -> {found.spots.standing.score_after:.2f}, rank "
        f"{found.spots.standing.rank_before} -> {found.spots.standing.rank_after}\n"
        f"map {found.spots.said:+.2f}, network {found.spots.change:+.2f}"
    )


def test_the_best_classes_are_bars() -> None:
    figure = draw_best(Image.new("RGB", (4, 4)), ["$tabby$", "pug"], [3.0, 1.5], "title")
    bars = figure.axes[1]
    assert [bar.get_width() for bar in bars.patches] == [3.0, 1.5]
    assert bars.patches[0].get_y() > bars.patches[1].get_y()
    assert [label.get_text() for label in bars.get_yticklabels()] == ["$tabby$", "pug"]


# The command ----------------------------------------------------------------------------------------------------

OWN = """
import numpy as np
import torch
from captum_cav import zoo

def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, 2, 1), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 3),
    )
    def as_tensor(picture):
        return torch.tensor(np.array(picture.resize((32, 32)))).permute(2, 0, 1) / 255
    return zoo.Network("own", model, as_tensor, lambda picture: picture.resize((32, 32)), ("tabby", "shepherd", "pug"))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small network and a picture, in which the command runs."""
    (tmp_path / "small_network.py").write_text(OWN)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FILES = ["figure5.png", "figure6.png", "figure7.png", "figure8.png", "table1.md"]


def test_a_users_network_and_picture(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["reproduce", "picture.png", "--model", "small_network:make", "--classes", "pug", "0"]
    assert (
        cli.main([*arguments, "--region", "0,0,16,32", "--layers", "3,1", "--rules", "epsilon", "--output", "out"]) == 0
    )
    printed = capsys.readouterr().out
    assert "the paper's claims on own: pug, with tabby in the box (0, 0, 16, 32); rules: epsilon" in printed
    assert len(re.findall(r"^  (?:holds|holds in part|does not hold|cannot be judged): ", printed, re.MULTILINE)) == 6
    assert "(1) does not count, for there the score is the sum of the map" in printed
    assert sorted(path.name for path in (own / "out").iterdir()) == sorted([".captum_cav_files.json", *FILES])
    table = (own / "out" / "table1.md").read_text()
    assert re.findall(r"^## (.+)$", table, re.MULTILINE) == ["(1) 3", "(2) 1"]
    assert table.count("| rank | before | score |") + table.count("There is no such place.") == 4
    for file in FILES[:4]:
        with Image.open(own / "out" / file) as drawn:
            assert drawn.width > 500
            assert np.asarray(drawn.convert("RGB")).std() > 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["picture.png"], r"needs --classes CLASS OTHER and --region L,T,R,B, the box of OTHER"),
        (["picture.png", "--classes", "0", "1"], r"needs --classes CLASS OTHER and --region"),
        (["--classes", "0", "0"], r"--classes names 'tabby' twice; expected two classes"),
        (["--classes", "0", "boxer"], r"own has no class 'boxer'"),
        (
            ["--classes", "0", "1", "--region", "left"],
            r"--region is 'left'; expected four numbers, as --region 0,0,1,0\.5",
        ),
        (["--classes", "0", "1", "--region", "0,0,1"], r"the box has 3 numbers; expected left, top, right, bottom"),
        (["--classes", "0", "1", "--region", "0,0,99,1"], r"the box \(0, 0, 99, 1\) holds no pixels of a picture of"),
        (["--classes", "0", "1", "--layers", "6"], r"no places to lay over a picture"),
        (
            ["--classes", "0", "1", "--region", "0,0,1,1", "--layers", "3"],
            r"1 pixels covers more than half of none of the 8 x 8 places of layer '3'",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_a_user_can_mend_is_one_line(
    arguments: list[str], message: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["reproduce", *arguments, "--model", "small_network:make", "--output", "out"]) == 2
    error = capsys.readouterr().err.split("\r")[-1].lstrip()
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert list((own / "out").iterdir()) == []


REAL = {
    "efficientnet_lite0": ["holds", "holds", "holds in part", "holds", "holds in part", "does not hold"],
    "squeezenet1_1": ["holds", "holds", "does not hold", "holds in part", "holds", "holds in part"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_networks_on_the_embedded_picture(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verdicts are those that were found, looked at and reported; a change of them is to be explained."""
    assert cli.main(["reproduce", "--model", name, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^  (holds in part|holds|does not hold): ", printed, re.MULTILINE) == REAL[name]
    assert "tabby, with German shepherd in the box (0, 0, 1, 0.5); rules: paper" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".captum_cav_files.json", *FILES])


@pytest.mark.slow
def test_vgg16_runs_with_weights_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With weights that were drawn, for none are at hand: at its five pooling layers, with nothing foregone."""
    torch.manual_seed(0)
    weights = tmp_path / "vgg16.pth"
    torch.save(torchvision.models.vgg16(weights=None).state_dict(), weights)
    arguments = ["reproduce", "--model", "vgg16", "--weights", str(weights), "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "does not count" not in printed
    assert re.findall(r"^## \(\d\) (.+)$", (tmp_path / "out" / "table1.md").read_text(), re.MULTILINE) == [
        f"features.{index}" for index in (30, 23, 16, 9, 4)
    ]
