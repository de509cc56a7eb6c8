"""The page: what is embedded is what was computed, nothing in it can harm, and a browser shows it."""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from PIL import Image
from torch import nn
from torchvision.transforms import functional as pictures

import captum_cav
from captum_cav import LayerCAV, cli, zoo
from captum_cav.errors import CAVError, InputError, OptionError
from captum_cav.page import write_page
from captum_cav.visualization import spatial_map
from tests.support.pages import HOSTILE, button, check_clean, data_of, decoded, text

PRESETS = ("pinpoint", "paper", "gamma")


def tiny_network(*names: str, name: str = "tiny") -> zoo.Network:
    """A network of two layers with places, whose classes have the given names."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 8 * 8, len(names)),
    )
    return zoo.Network(
        name, model, lambda picture: pictures.to_tensor(picture) - 0.5, lambda picture: picture, names, ("4", "1")
    )


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def network() -> zoo.Network:
    return zoo.load("efficientnet_lite0")


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory, network: zoo.Network) -> Path:
    """The embedded picture with five classes, five depths and three presets."""
    path = tmp_path_factory.mktemp("report") / "page.html"
    write_page(path, network, [("dog_above_cat.png", zoo.demo_picture())], presets=PRESETS)
    return path


def test_five_depths_five_classes_and_three_presets_are_a_small_page(full_page: Path) -> None:
    data = data_of(full_page)
    (picture,) = data["pictures"]
    assert [len(data["layers"]), len(picture["classes"]), len(picture["classes"][0]["rules"])] == [5, 5, 3]
    assert [rules["name"] for rules in data["rules"]] == list(PRESETS)
    assert all(rules["note"] for rules in data["rules"])
    assert full_page.stat().st_size < 1.5e6


def test_maps_and_shares_are_those_of_the_attribution(full_page: Path, network: zoo.Network) -> None:
    data = data_of(full_page)
    (picture,) = data["pictures"]
    inputs = network.preprocess(zoo.demo_picture())[None]
    scores = network.model(inputs)[0].detach()
    ranked = scores.argsort(descending=True).tolist()
    assert [entry["name"] for entry in picture["classes"]] == [network.class_name(index) for index in ranked[:5]]
    assert [entry["rank"] for entry in picture["classes"]] == [1, 2, 3, 4, 5]
    assert [entry["score"] for entry in picture["best"]] == pytest.approx(scores[ranked[:5]].tolist())
    for number, preset in enumerate(PRESETS):
        cav = LayerCAV(network.model, data["layers"], rules=preset, normalize="abs")
        for entry, index in zip(picture["classes"], ranked, strict=False):
            attributions, deltas = cav.attribute(inputs, index, return_convergence_delta=True)
            for shown, ratios, delta in zip(entry["rules"][number], attributions, deltas, strict=True):
                expected = spatial_map(ratios, (224, 224))[0]
                error = (decoded(shown["map"]) - expected).abs().max()
                assert error <= expected.abs().max() / 60_000
                assert shown["raised"] == pytest.approx(float(expected.relu().sum()), rel=1e-5)
                assert shown["lowered"] == pytest.approx(-float((-expected).relu().sum()), rel=1e-5)
                assert shown["unexplained"] == pytest.approx(float(delta), abs=1e-6)
                parts = [shown[part] for part in ("raised", "lowered", "constants", "unexplained")]
                assert sum(parts) == pytest.approx(1)
    cam = LayerGradCam(network.model, network.model.blocks[10]).attribute(inputs, ranked[1], relu_attributions=True)
    shown = decoded(picture["classes"][1]["gradCam"][1])
    assert (shown - cam[0, 0].detach()).abs().max() <= cam.abs().max() / 60_000


@pytest.mark.parametrize(
    "last", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid()], ids=["softmax", "log_softmax", "sigmoid"]
)
def test_a_network_that_squashes_its_scores_has_the_page_of_its_logits(last: nn.Module, tmp_path: Path) -> None:
    found = {}
    for name, more in (("plain", []), ("squashed", [last])):
        network = tiny_network("a", "b", "c")
        network.model.extend(more)  # type: ignore[operator]
        write_page(tmp_path / name, network, [("noise", noise())], presets=["paper"])
        found[name] = data_of(tmp_path / name)
    said = found["squashed"].pop("aboutScores")
    assert re.fullmatch(r"tiny ends in (log_)?(softmax|sigmoid): all scores are the numbers before it\.", said)
    assert found["plain"].pop("aboutScores") == ""
    assert any(entry["score"] < 0 for entry in found["plain"]["pictures"][0]["classes"])
    assert found["squashed"] == found["plain"]


def test_behind_the_last_layer_constants_are_the_class_bias(full_page: Path, network: zoo.Network) -> None:
    for entry in data_of(full_page)["pictures"][0]["classes"]:
        bias = network.model.classifier.bias[network.class_index(entry["name"])].item()
        for rules in entry["rules"][:2]:  # gamma's bias is no constant
            assert rules[0]["constants"] * entry["score"] == pytest.approx(bias, abs=1e-3)


def test_the_picture_is_what_the_network_sees(full_page: Path, network: zoo.Network) -> None:
    (picture,) = data_of(full_page)["pictures"]
    kind, encoded = picture["source"].split(",")
    assert kind == "data:image/jpeg;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))).astype(float)
    expected = np.asarray(network.display(zoo.demo_picture())).astype(float)
    assert shown.shape == (picture["height"], picture["width"], 3) == expected.shape
    assert np.abs(shown - expected).mean() < 4


def test_scores_without_places_are_those_of_a_network_without_them(full_page: Path, network: zoo.Network) -> None:
    data = data_of(full_page)
    (picture,) = data["pictures"]
    assert data["layers"][data["firstDepth"]] == "blocks.10"
    inputs = network.preprocess(zoo.demo_picture())[None]
    for number in range(len(PRESETS)):
        for entry in picture["classes"][:2]:
            ratios = decoded(entry["rules"][number][1]["map"]).flatten()
            for what, sign in (("raised", 1), ("lowered", -1)):
                hidden = entry["hidden"][number][what]
                strongest = (sign * ratios).argsort(descending=True)
                held = (sign * ratios)[strongest].clamp(min=0).cumsum(0) / (sign * ratios).clamp(min=0).sum()
                count = 1 + int((held < data["hidden"]).sum())
                assert len(hidden["places"]) == pytest.approx(count, abs=1)  # the last one may hang on the rounding

                def without(
                    _: Any, __: Any, output: torch.Tensor, places: list[int] = hidden["places"]
                ) -> torch.Tensor:
                    output = output.clone()
                    output.flatten(2)[:, :, places] = 0
                    return output

                handle = network.model.blocks[10].register_forward_hook(without)
                with torch.no_grad():
                    scores = network.model(inputs)[0]
                handle.remove()
                index = network.class_index(entry["name"])
                assert hidden["score"] == pytest.approx(float(scores[index]), abs=1e-3)
                assert hidden["rank"] == 1 + int((scores > scores[index]).sum())
                assert [best["score"] for best in hidden["best"]] == pytest.approx(
                    scores.topk(5).values.tolist(), abs=1e-3
                )
            hidden = entry["hidden"][number]
            assert hidden["raised"]["score"] < entry["score"] < hidden["lowered"]["score"]


def test_a_negative_score_keeps_the_signs_of_evidence(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Identity(), nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, 2))
    with torch.no_grad():
        model[3].weight.copy_(torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]))
        model[3].bias.copy_(torch.tensor([0.0, 0.5]))
    network = zoo.Network("linear", model, pictures.to_tensor, lambda picture: picture, ("light", "dark"))
    write_page(tmp_path / "page.html", network, [("noise", noise())], layers=["0"], presets=["paper"])
    light, dark = data_of(tmp_path / "page.html")["pictures"][0]["classes"]
    assert light["name"] == "light"
    assert light["hidden"][0]["lowered"] is None
    score = dark["score"]
    assert score < 0
    (shown,) = dark["rules"][0]
    assert shown["raised"] == 0
    assert shown["lowered"] == pytest.approx((score - 0.5) / abs(score))
    assert shown["constants"] == pytest.approx(0.5 / abs(score))
    assert (decoded(shown["map"]) <= 0).all()


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    named = tiny_network(*HOSTILE, name=HOSTILE[1])
    write_page(path, named, [(HOSTILE[0], noise()), (HOSTILE[1], noise(1))])
    page = path.read_text("utf-8")
    template = (Path(captum_cav.__file__).parent / "data" / "page.html").read_text("utf-8")
    for tag in ("<script", "</script", "<img", "<!--"):
        assert page.count(tag) == template.count(tag)
    data = data_of(path)
    assert data["network"] == HOSTILE[1]
    assert [picture["name"] for picture in data["pictures"]] == [HOSTILE[0], HOSTILE[1]]
    assert {entry["name"] for entry in data["pictures"][0]["classes"]} == set(HOSTILE)


def test_the_page_names_no_address_and_only_parts_that_it_has() -> None:
    template = (Path(captum_cav.__file__).parent / "data" / "page.html").read_text("utf-8")
    assert not re.search(r"https?:|\bfetch\(|XMLHttpRequest|@import|url\(", template)
    assert "default-src 'none'" in template
    used = set(re.findall(r'\$\("([\w-]+)"\)', template))
    assert used <= set(re.findall(r'\bid="([\w-]+)"', template))
    labelled = set(re.findall(r'(?:aria-labelledby|for)="([\w-]+)"', template))
    assert labelled <= set(re.findall(r'\bid="([\w-]+)"', template))


def test_grad_cam_is_left_out_where_it_is_not_defined(tmp_path: Path) -> None:
    class Last(nn.Module):
        """Channels in the last dimension, as in a Swin transformer."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.permute(0, 2, 3, 1)

    model = nn.Sequential(nn.Conv2d(3, 5, 4, 4), Last(), nn.Flatten(), nn.Linear(5 * 8 * 8, 2))
    network = zoo.Network("last", model, pictures.to_tensor, lambda picture: picture, ("a", "b"))
    write_page(tmp_path / "page.html", network, [("noise", noise())], layers=["1", "0"], presets=["paper"])
    for entry in data_of(tmp_path / "page.html")["pictures"][0]["classes"]:
        assert entry["gradCam"][0] is None
        assert entry["gradCam"][1]["rows"] == 8


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"pictures": []}, InputError, "0 pictures and 2 presets; expected at least one of each"),
        ({"presets": ()}, InputError, "1 pictures and 0 presets; expected at least one of each"),
        ({"presets": ("pinpont",)}, OptionError, "unknown preset 'pinpont' .did you mean 'pinpoint'"),
        ({"targets": ["elephant"]}, InputError, "tiny has no class 'elephant'"),
        ({"layers": ["6"]}, InputError, "no places to lay over a picture"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_cannot_be_shown_is_refused(
    changed: dict[str, Any], error: type[CAVError], message: str, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"pictures": [("noise", noise())]} | changed
    with pytest.raises(error, match=message):
        write_page(tmp_path / "page.html", tiny_network("a", "b"), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_command_explains_the_embedded_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "folder" / "page.html"
    arguments = ["report", "--model", "squeezenet1_1", "--depths", "2", "--presets", "paper", "--output", str(path)]
    assert cli.main([*arguments, "--target", "tabby", "German shepherd", "281"]) == 0
    assert re.search(r"page: .*page\.html \(\d+\.\d kB\)", capsys.readouterr().out)
    data = data_of(path)
    assert [picture["name"] for picture in data["pictures"]] == ["dog_above_cat.png"]
    assert [entry["name"] for entry in data["pictures"][0]["classes"]] == ["tabby", "German shepherd"]
    assert len(data["layers"]) == 2


def test_the_command_takes_several_pictures_by_their_files_names(tmp_path: Path) -> None:
    for number in range(2):
        noise(number).resize((64, 48)).save(tmp_path / f"{number}.png")
    path = tmp_path / "page.html"
    files = [str(tmp_path / f"{number}.png") for number in range(2)]
    arguments = ["--model", "squeezenet1_1", "--layers", "features.12", "--presets", "paper", "--output", str(path)]
    assert cli.main(["report", *files, *arguments]) == 0
    first, second = data_of(path)["pictures"]
    assert (first["name"], second["name"]) == ("0.png", "1.png")
    assert first["source"] != second["source"]


def test_a_folder_is_refused_as_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "--output", str(tmp_path)]) == 2
    assert re.search(r"captum-cav: error: .+ is a folder; give a file with --output FILE", capsys.readouterr().err)


@pytest.mark.filterwarnings("ignore::captum_cav.errors.ScoreWarning")
def test_a_score_of_zero_has_no_shares(tmp_path: Path) -> None:
    network = tiny_network("something", "nothing")
    with torch.no_grad():
        network.model[6].weight[1] = 0
        network.model[6].bias[1] = 0
    with pytest.raises(InputError, match="contribution is not finite, as where a score is 0; choose another class"):
        write_page(tmp_path / "page.html", network, [("noise", noise())], ["nothing"], presets=["paper"])


# In a browser


def drawn(page: Any) -> np.ndarray[Any, Any]:
    """The pixels of the map."""
    address = page.execute_script("return document.getElementById('map').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGBA")).astype(int)


def number(shown: str) -> float:
    """A number as the page writes it, with or without its unit."""
    return float(shown.removesuffix(" %").replace("\u2212", "-"))


@pytest.mark.slow
def test_controls_change_what_is_drawn(full_page: Path, browse: Callable[..., Any]) -> None:
    page = browse(full_page)
    seen = [drawn(page)]

    def changes() -> None:
        now = drawn(page)
        for before in seen:
            assert np.abs(now - before).max() > 50
        seen.append(now)

    assert text(page, "heading") == "What spoke for and against “Egyptian cat”?"
    slider = page.find_element("id", "depth")
    slider.send_keys("\ue014")  # right
    changes()
    assert text(page, "depth-label") == "Depth 3 of 5: layer blocks.4, 28 \u00d7 28 places"
    page.execute_script("arguments[0].value = 4; arguments[0].dispatchEvent(new Event('input'))", slider)
    changes()
    assert text(page, "depth-label").startswith("Depth 5 of 5")
    assert slider.get_attribute("aria-valuetext") == text(page, "depth-label")
    button(page, "classes", "German shepherd").click()
    changes()
    assert text(page, "heading") == "What spoke for and against “German shepherd”?"
    button(page, "rules", "paper").click()
    changes()
    button(page, "looks", "For only").click()
    changes()
    button(page, "looks", "Grad-CAM").click()
    changes()
    button(page, "looks", "Picture only").click()
    assert page.find_element("id", "map").value_of_css_property("visibility") == "hidden"
    button(page, "looks", "For and against").click()
    assert np.abs(drawn(page) - seen[-3]).max() == 0, "the same choices draw the same map"
    opacity = page.find_element("id", "opacity")
    page.execute_script("arguments[0].value = 20; arguments[0].dispatchEvent(new Event('input'))", opacity)
    assert float(page.find_element("id", "map").value_of_css_property("opacity")) == pytest.approx(0.2)
    check_clean(page, full_page)


@pytest.mark.slow
def test_the_keyboard_changes_depth_and_class(full_page: Path, browse: Callable[..., Any]) -> None:
    left, up, right, down = "\ue012\ue013\ue014\ue015"
    page = browse(full_page)
    body, stage = page.find_element("tag name", "body"), page.find_element("id", "stage")
    body.send_keys(right, right, left)
    assert text(page, "depth-label").startswith("Depth 3 of 5")
    body.send_keys(left * 9)
    assert text(page, "depth-label").startswith("Depth 1 of 5")
    body.send_keys("3")
    assert "“tabby”" in text(page, "heading")
    body.send_keys("9")
    assert "“tabby”" in text(page, "heading"), "there are five classes"
    stage.send_keys(down)
    assert "“tiger cat”" in text(page, "heading")
    stage.send_keys(up, up)
    assert "“German shepherd”" in text(page, "heading")
    assert page.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    pressed = [one.text for one in page.find_elements("css selector", "#classes [aria-pressed=true]")]
    assert len(pressed) == 1
    assert "German shepherd" in pressed[0]
    assert "depth" in text(page, "keyboard")
    check_clean(page, full_page)


@pytest.mark.slow
def test_the_value_under_the_pointer_is_the_map_s(full_page: Path, browse: Callable[..., Any]) -> None:
    page = browse(full_page)
    button(page, "rules", "paper").click()
    ratios = decoded(data_of(full_page)["pictures"][0]["classes"][0]["rules"][1][1]["map"])
    assert "Point at the picture" in text(page, "value")
    for row, column in ((2, 11), (9, 4)):
        page.execute_script(
            "const box = arguments[0].getBoundingClientRect();"
            "arguments[0].dispatchEvent(new PointerEvent('pointermove', {"
            "clientX: box.left + box.width * arguments[1], clientY: box.top + box.height * arguments[2]}))",
            page.find_element("id", "stage"),
            (column + 0.5) / 14,
            (row + 0.5) / 14,
        )
        shown, _, unit = text(page, "value").partition(" %")
        assert number(shown) == pytest.approx(100 * float(ratios[row, column]), rel=0.06)
        assert unit == f" of the score of Egyptian cat\nrow {row + 1}, column {column + 1} of 14 \u00d7 14 in blocks.10"
    assert page.find_element("id", "value").get_attribute("aria-live") == "polite"


@pytest.mark.slow
def test_red_and_blue_lie_where_the_map_has_their_signs(full_page: Path, browse: Callable[..., Any]) -> None:
    page = browse(full_page)
    ratios = decoded(data_of(full_page)["pictures"][0]["classes"][0]["rules"][0][1]["map"])
    middles = drawn(page)[8::16, 8::16]
    strong = ratios.abs() > ratios.abs().max() / 4
    assert strong.sum() > 5
    for row, column in strong.nonzero().tolist():
        red, _, blue, opacity = middles[row, column]
        assert (red > blue) == (ratios[row, column] > 0)
        assert opacity > 40
    # The number of the full colour is that of the figures.
    button(page, "rules", "paper").click()
    ratios = decoded(data_of(full_page)["pictures"][0]["classes"][0]["rules"][1][1]["map"])
    resized = torch.nn.functional.interpolate(ratios[None, None], (224, 224), mode="bilinear").abs()
    assert (
        text(page, "full")
        == f"full colour: {100 * np.quantile(resized, 0.99):.2g} % of the score or more from one place"
    )


@pytest.mark.slow
def test_tables_show_what_is_embedded(full_page: Path, browse: Callable[..., Any]) -> None:
    page = browse(full_page)
    button(page, "rules", "paper").click()
    entry = data_of(full_page)["pictures"][0]["classes"][0]
    rows = page.find_elements("css selector", "#shares tr")
    assert len(rows) == 5
    for row, shares in zip(rows, entry["rules"][1], strict=True):
        cells = [cell.text for cell in row.find_elements("css selector", "td")]
        expected = [100 * shares[part] for part in ("raised", "lowered", "constants")]
        assert list(map(number, cells[1:4])) == pytest.approx(expected, rel=0.06, abs=0.5)
        assert cells[4] == "< 0.01 %"
    shown = text(page, "ablation")
    for what in ("raised", "lowered"):
        assert f"{entry['hidden'][1][what]['score']:.2f} Egyptian cat, " in shown
        assert f"{len(entry['hidden'][1][what]['places'])} of 196 places hidden" in shown
        for best in entry["hidden"][1][what]["best"]:
            assert best["name"] in shown


@pytest.mark.slow
def test_hostile_names_do_nothing_in_a_browser(tmp_path: Path, browse: Callable[..., Any]) -> None:
    path = tmp_path / "page.html"
    named = tiny_network(*HOSTILE, name=HOSTILE[1])
    write_page(path, named, [(HOSTILE[0], noise()), (HOSTILE[1], noise(1))])
    page = browse(path)
    for number in range(1, len(HOSTILE) + 1):
        page.find_element("tag name", "body").send_keys(str(number))
        best = data_of(path)["pictures"][0]["classes"][number - 1]["name"]
        shown = page.execute_script("return document.getElementById('heading').textContent")
        assert shown == f"What spoke for and against “{best}”?"
    button(page, "pictures", HOSTILE[1]).click()
    assert page.execute_script("return document.scripts.length") == 2
    assert page.execute_script("return document.querySelectorAll('[onerror], img[src=x]').length") == 0
    check_clean(page, path)  # an open alert would have raised


@pytest.mark.slow
def test_several_pictures_are_chosen_by_their_thumbnails(tmp_path: Path, browse: Callable[..., Any]) -> None:
    path = tmp_path / "page.html"
    write_page(path, tiny_network("a", "b", "c"), [("one.png", noise()), ("two.png", noise(1))], presets=["paper"])
    page = browse(path)
    first = drawn(page), page.find_element("id", "picture").get_attribute("src")
    button(page, "pictures", "two.png").click()
    assert np.abs(drawn(page) - first[0]).max() > 50
    assert page.find_element("id", "picture").get_attribute("src") != first[1]
    assert "in two.png" in text(page, "summary")
    check_clean(page, path)


@pytest.mark.slow
def test_light_and_dark_follow_the_system_and_the_toggle(full_page: Path, browse: Callable[..., Any]) -> None:
    for colours, other in (("light", "dark"), ("dark", "light")):
        page = browse(full_page, colours=colours)

        def brightness(page: Any = page) -> int:
            colour = page.find_element("tag name", "body").value_of_css_property("background-color")
            return sum(map(int, re.findall(r"\d+", colour)[:3]))

        before = brightness()
        assert (before > 400) == (colours == "light")
        assert text(page, "theme") == f"{other.capitalize()} page"
        page.find_element("id", "theme").click()
        assert (brightness() > 400) == (other == "light")
        check_clean(page, full_page)


@pytest.mark.slow
def test_a_phone_has_one_column_and_nothing_to_scroll_sideways(full_page: Path, browse: Callable[..., Any]) -> None:
    page = browse(full_page, 390, 844)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    cards = page.find_elements("css selector", ".columns > .card")
    assert cards[0].rect["x"] == cards[1].rect["x"]
    assert cards[1].rect["y"] > cards[0].rect["y"] + cards[0].rect["height"]
    assert page.find_element("id", "stage").rect["width"] > 300


@pytest.mark.slow
def test_the_page_begins_with_what_hiding_does(full_page: Path, browse: Callable[..., Any]) -> None:
    page = browse(full_page)
    entry = data_of(full_page)["pictures"][0]["classes"][0]
    for number, rules in enumerate(PRESETS):
        button(page, "rules", rules).click()
        hidden = entry["hidden"][number]
        said = text(page, "hiding")
        for what in ("raised", "lowered"):
            assert (
                f"{hidden[what]['score']:.2f} without the {len(hidden[what]['places'])} places that {what} it" in said
            )


@pytest.mark.slow
def test_rules_whose_shares_are_no_amounts_have_no_account(full_page: Path, browse: Callable[..., Any]) -> None:
    page = browse(full_page)
    assert not page.find_element("id", "shares-table").is_displayed()
    assert "Choose the rules paper or gamma for an account" in text(page, "shares-sentence")
    assert "%" not in text(page, "full")
    button(page, "rules", "paper").click()
    assert page.find_element("id", "shares-table").is_displayed()
    assert "% of the score" in text(page, "full")


@pytest.mark.slow
def test_the_address_shows_the_same_view_to_others(full_page: Path, browse: Callable[..., Any]) -> None:
    page = browse(full_page)
    button(page, "classes", "tabby").click()
    button(page, "rules", "paper").click()
    button(page, "looks", "For only").click()
    page.find_element("id", "depth").send_keys("\ue014")
    history = page.execute_script("return history.length")
    address = page.current_url
    assert address.endswith("#picture=1&class=3&layer=blocks.4&rules=paper&map=heat")
    other = browse(full_page)
    other.get(address)
    assert np.abs(drawn(other) - drawn(page)).max() == 0
    assert text(other, "heading") == text(page, "heading")
    assert history == 2, "no step for each click"
    other.execute_script("location.hash = '#class=2'")
    browse_until(other, lambda: "German shepherd" in text(other, "heading"))
    assert other.get_log("browser") == []


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["#class=99&picture=x&layer=%3Cimg%3E&rules=none&map=toString", "#%", "#=&&"])
def test_a_wrong_address_shows_the_first_view(full_page: Path, browse: Callable[..., Any], wrong: str) -> None:
    plain, page = browse(full_page), browse(full_page)
    page.get(f"{full_page.as_uri()}{wrong}")
    page.refresh()
    assert np.abs(drawn(plain) - drawn(page)).max() == 0
    assert page.get_log("browser") == []


def browse_until(page: Any, seen: Callable[[], bool]) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 10).until(lambda _: seen())


@pytest.mark.slow
def test_a_view_is_saved_as_png(full_page: Path, browse: Callable[..., Any], tmp_path: Path) -> None:
    page = browse(full_page)
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.find_element("id", "save").click()
    browse_until(page, lambda: bool(list(tmp_path.glob("*.png"))))
    (file,) = tmp_path.iterdir()
    assert file.name == "dog_above_cat_Egyptian_cat_blocks.10_signed.png"
    with Image.open(file) as saved:
        pixels = np.asarray(saved.convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    assert width == 4 * 224
    assert height > width
    stage = pixels[-width:]
    ratios = decoded(data_of(full_page)["pictures"][0]["classes"][0]["rules"][0][1]["map"])
    row, column = divmod(int(ratios.argmax()), 14)
    red, _, blue = stage[64 * row + 32, 64 * column + 32]
    assert red > blue + 50
    assert pixels[: height - width].min() < 100, "the caption"
    check_clean(page, full_page)


def test_headings_follow_each_other_without_a_gap() -> None:
    template = (Path(captum_cav.__file__).parent / "data" / "page.html").read_text("utf-8")
    levels = [int(level) for level in re.findall(r"<h([1-6])", template)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(following <= level + 1 for level, following in itertools.pairwise(levels))


def test_progress_names_each_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described: list[str] = []
    monkeypatch.setattr("tqdm.std.tqdm.set_description", lambda _, text, **__: described.append(text))
    write_page(tmp_path / "page.html", tiny_network("a", "b"), [("one", noise()), ("two", noise(1))])
    assert described == ["one", "two"]


def test_a_damaged_picture_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise().resize((64, 48)).save(tmp_path / "good.png")
    (tmp_path / "damaged.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    path = tmp_path / "out" / "page.html"
    arguments = ["--model", "squeezenet1_1", "--layers", "features.12", "--presets", "paper", "--output", str(path)]
    assert cli.main(["report", str(tmp_path), *arguments]) == 1
    assert "skipped: cannot open the picture" in (said := capsys.readouterr().err)
    assert "damaged.png" in said
    assert [picture["name"] for picture in data_of(path)["pictures"]] == ["good.png"]
