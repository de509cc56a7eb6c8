"""One picture in one call."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import functional as pictures

import captum_cav
from captum_cav import LayerCAV, presets, single_image, zoo
from captum_cav.errors import CAVError, CAVTypeError, InputError, ModelError
from captum_cav.explanation import show_beside
from captum_cav.scores import Region
from captum_cav.tables import decimals
from captum_cav.visualization import spatial_map


def network(*last: nn.Module, classes: tuple[str, ...] = ("a", "b", "c")) -> zoo.Network:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3), *last,
    )  # fmt: skip
    nn.init.normal_(model[7].weight)
    return zoo.Network(
        "tiny", model, lambda one: pictures.to_tensor(one.resize((16, 16))) - 0.5, lambda one: one.resize((16, 16)),
        classes, ("4", "2"),
    )  # fmt: skip


def noise(width: int = 48, height: int = 32, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_maps_scores_and_shares_are_those_of_the_attribution() -> None:
    net, picture = network(), noise()
    inputs = net.preprocess(picture)[None]
    scores = net.model(inputs)[0].detach()
    explained = captum_cav.explain(net, picture, ["b", 0, "b"])
    assert [one.index for one in explained.classes] == [1, 0], "each class once"
    assert explained.layers == ("4", "2")
    cav = LayerCAV(net.model, ["4", "2"], normalize="abs")
    for one in explained.classes:
        maps, deltas = cav.attribute(inputs, one.index, return_convergence_delta=True)
        assert one.score == pytest.approx(float(scores[one.index]), rel=1e-5)
        assert one.probability == pytest.approx(float(scores.softmax(0)[one.index]), rel=1e-5)
        for layer, ratios, delta in zip(("4", "2"), maps, deltas, strict=True):
            torch.testing.assert_close(one.maps[layer], spatial_map(ratios, (16, 16))[0])
            assert one.shares[layer].unexplained == pytest.approx(float(delta), abs=1e-6)
    assert [one.index for one in explained.best] == scores.argsort(descending=True).tolist()
    assert captum_cav.explain(net, picture).classes[0].index == int(scores.argmax())


@pytest.mark.parametrize("normalize", ["abs", "score", None])
@pytest.mark.filterwarnings("ignore::captum_cav.errors.SignWarning")
def test_maps_are_normalized_as_layer_cav_does(normalize: str | None) -> None:
    net, picture = network(), noise()
    inputs = net.preprocess(picture)[None]
    for index in range(3):
        explained = captum_cav.explain(net, picture, index, normalize=normalize)
        expected = LayerCAV(net.model, "2", normalize=normalize).attribute(inputs, index)
        torch.testing.assert_close(explained.classes[0].maps["2"], spatial_map(expected, (16, 16))[0])


def test_hiding_is_a_run_without_the_features_of_the_places() -> None:
    net, picture = network(), noise()
    inputs = net.preprocess(picture)[None]
    explained = captum_cav.explain(net, picture, 0)
    (one,) = explained.classes
    for what, sign in (("raised", 1), ("lowered", -1)):
        found = one.hidden[what]
        if found is None:
            assert float((sign * one.maps["2"]).max()) <= 0
            continue
        places, score = found
        strongest = (sign * one.maps["2"]).flatten().topk(places).indices
        with torch.no_grad():
            features = net.model[:3](inputs).flatten(2).index_fill(2, strongest, 0).reshape(1, 4, 8, 8)
            after = float(net.model[3:](features)[0, 0])
        assert score == pytest.approx(after, rel=1e-4, abs=1e-5)
        assert f"{decimals(score, 2)}  without the {places} places that {what} it most" in explained.table()


def test_rules_without_amounts_have_no_account() -> None:
    net, picture = network(), noise()
    with_account, without = (captum_cav.explain(net, picture, 0, rules=rules) for rules in ("paper", "pinpoint"))
    assert "in per cent of it" in with_account.table()
    assert "in per cent of it" not in without.table()
    assert "without the" in without.table()
    assert "raised" not in without.to_dict()["classes"][0]["layers"][0]
    titles = [axis.get_title() for axis in without.figure().axes]
    assert not any("% of the score" in title for title in titles)
    assert captum_cav.explain(net, picture, 0, rules=presets.gamma() | {}).rules == "gamma, changed"


def test_the_figure_of_two_rules_says_what_to_believe() -> None:
    net, picture = network(), noise()
    figure = show_beside([captum_cav.explain(net, picture, 0, rules=rules) for rules in ("paper", "gamma")])
    assert single_image.WHICH_TO_BELIEVE in figure.get_suptitle().replace("\n", " ")
    labels = [axis.get_ylabel().replace("\n", " ") for axis in figure.axes if axis.get_ylabel().startswith("a")]
    assert labels == ["a the paper's rules", "a preset 'gamma'"]


def test_an_overlay_has_the_size_of_the_original_and_lies_where_the_map_is() -> None:
    """One bright square decides; its place in the original is red, also where the network sees only a part."""
    model = nn.Sequential(nn.Identity(), nn.AvgPool2d(1), nn.Flatten(), nn.Linear(3 * 32 * 32, 1, bias=False)).eval()
    nn.init.ones_(model[3].weight)

    def seen(picture: Image.Image) -> Image.Image:
        return picture.crop((100, 20, 260, 180)).resize((32, 32))

    net = zoo.Network("cut", model, lambda one: pictures.to_tensor(seen(one)), seen, ("bright",), ("0",))
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[60:80, 220:240] = 255
    original = Image.fromarray(pixels)
    explained = captum_cav.explain(net, original)
    assert np.abs(np.subtract(explained.part, (100, 20, 260, 180))).max() <= 1
    drawn = np.asarray(explained.overlay("0", "bright")).astype(int)
    assert drawn.shape == (200, 300, 3)
    assert np.array_equal(drawn[:18], pixels[:18]), "what the network does not see stays as it was"
    red, _, blue = drawn[70, 230]
    assert red > blue + 100
    assert (drawn[120:170, 110:200].std(2) < 2).all(), "nothing is drawn elsewhere"
    heat = np.asarray(explained.overlay("0", 0, signed=False)).astype(int)
    assert heat[70, 230].sum() > heat[150, 150].sum() + 100
    for wrong, said in ((("1", None), "layer '1' was not explained"), (("0", "dark"), "class 'dark' was not")):
        with pytest.raises(InputError, match=said):
            explained.overlay(*wrong)


def test_the_part_that_torchvision_sees_is_the_middle() -> None:
    net = zoo.network_of(nn.Flatten(), "any")
    left, top, right, bottom = single_image.seen_part(net, noise(600, 400))
    assert np.abs(np.subtract((left, top, right, bottom), (125, 25, 475, 375))).max() <= 2
    mirrored = zoo.Network("mirror", nn.Flatten(), None, lambda one: one.transpose(0))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="turns or mirrors"):
        single_image.seen_part(mirrored, noise())


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 3, 16, 16)])
def test_a_tensor_is_taken_as_it_is(shape: tuple[int, ...]) -> None:
    net = network()
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    explained = captum_cav.explain(net.model, inputs, 1, ["2"], classes=("a", "b", "c"))
    expected = LayerCAV(net.model, "2", normalize="abs").attribute(inputs.reshape(1, 3, 16, 16), 1)
    torch.testing.assert_close(explained.classes[0].maps["2"], spatial_map(expected, (16, 16))[0])
    assert explained.classes[0].name == "b"


def test_a_file_and_a_module_get_the_usual_preprocessing(tmp_path: Path) -> None:
    net = network()
    noise(300, 260).save(tmp_path / "a.png")
    explained = captum_cav.explain(net.model, tmp_path / "a.png", 2, ["2"])
    assert explained.picture.size == (224, 224)
    assert explained.overlay().size == (300, 260)
    assert explained.classes[0].name == "class 2"


def test_scores_that_are_not_those_of_classes() -> None:
    segmenter = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    explained = captum_cav.explain(
        segmenter, torch.rand(1, 3, 16, 16), None, ["1"], score=Region(1, mask=torch.ones(16, 16) > 0)
    )
    assert explained.best == ()
    assert explained.best_classes == ""
    assert explained.classes[0].probability is None
    squashed = captum_cav.explain(network(nn.Softmax(1)), noise(), 0)
    plain = captum_cav.explain(network(), noise(), 0)
    assert squashed.classes[0].score == pytest.approx(plain.classes[0].score, rel=1e-5)
    of_output = captum_cav.explain(network(nn.Softmax(1)), noise(), 0, score="output")
    assert of_output.classes[0].score == pytest.approx(plain.classes[0].probability, rel=1e-4)


def test_it_shows_itself() -> None:
    explained = captum_cav.explain(network(), noise(), 0)
    assert "Explanation(network='tiny', rules='paper', scores={a: " in repr(explained)
    assert len(repr(explained)) < 200
    shown = explained._repr_html_()
    assert shown.count("<img") == 1
    assert "without the" in shown
    assert str(explained) == explained.table()
    data = json.loads(json.dumps(explained.to_dict()))
    assert data["classes"][0]["layers"][1]["grid"] == [8, 8]
    assert {name: found.shape for name, found in explained.to_arrays().items()} == {"0/4": (8, 8), "0/2": (8, 8)}


class Raising(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("in the model")


@pytest.mark.parametrize(
    ("model", "picture", "error", "said"),
    [
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()),
            noise(),
            ModelError,
            "to have 1 channels, but got 3 channels",
        ),
        (Raising(), noise(), ModelError, "Raising raised ZeroDivisionError .*: in the model"),
        (torch.jit.script(network().model), noise(), ModelError, "scripted or traced"),
        (network().model, 3, CAVTypeError, "picture is a int"),
        (network().model, torch.zeros(2, 3, 8, 8), InputError, r"shape \(2, 3, 8, 8\); expected"),
        (network().model, "missing.png", InputError, "No such file"),
        (lambda x: x, noise(), CAVTypeError, "expected a torch.nn.Module"),
        (network(classes=("a", "b")), noise(), InputError, "2 names of classes, and tiny returned 3 scores"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_explained_is_named(model: nn.Module, picture: object, error: type[CAVError], said: str) -> None:
    if isinstance(model, nn.Module):
        model.eval()
    with pytest.raises(error, match=said):
        captum_cav.explain(model, picture)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_gets_pictures_in_its_precision(dtype: torch.dtype) -> None:
    net = network()
    expected = captum_cav.explain(net, noise(), 0).classes[0].score
    net.model.to(dtype)
    assert captum_cav.explain(net, noise(), 0).classes[0].score == pytest.approx(expected, rel=0.05, abs=0.02)


def test_a_compiled_model_is_the_model_inside() -> None:
    net = network()
    compiled = torch.compile(net.model)
    explained, expected = captum_cav.explain(compiled, torch.rand(1, 3, 16, 16), 0), None
    assert explained.layers
    assert expected is None


def test_what_rounds_to_zero_has_no_sign() -> None:
    assert decimals(-1e-6, 4) == "0.0000"
    assert decimals(-0.04, 1) == "0.0"
    assert decimals(-0.06, 1) == "-0.1"


def test_a_region_that_vanishes_has_no_score() -> None:
    segmenter = nn.Sequential(nn.Identity(), nn.Conv2d(3, 2, 1)).eval()
    with torch.no_grad():
        segmenter[1].weight.copy_(torch.tensor([[1.0] * 3, [0.0] * 3])[..., None, None])
        segmenter[1].bias.copy_(torch.tensor([-1.0, 0.0]))
    inputs = torch.zeros(1, 3, 8, 8)
    inputs[..., 2:4, 2:4] = 1
    explained = captum_cav.explain(segmenter, inputs, None, ["0"], score=Region(0))
    assert "no score  without the 4 places that raised it most" in explained.table()
