"""The page about a dataset: what it embeds is what was analysed, nothing in it can harm, and a browser shows it."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import captum_cav
from captum_cav import LayerCAV, cli, datasets, zoo
from captum_cav.datasets.analysis import Analysis, analyze
from captum_cav.datasets.summary import write_summary
from captum_cav.errors import OptionError
from tests.support.errors import raising
from tests.support.examples import python_of
from tests.support.pages import HOSTILE, button, check_clean, data_of, decoded, text

LEFT, UP, RIGHT, DOWN, ENTER, ESCAPE = "\ue012\ue013\ue014\ue015\ue007\ue00c"


def write_pictures(folder: Path) -> Path:
    """30 pictures in each of two classes. Twenty of the class "a" have a white mark in the upper left corner."""
    generator = np.random.default_rng(0)
    for number in range(60):
        picture = generator.integers(0, 120, (16, 16, 3), dtype=np.uint8)
        if number < 20:
            picture[:4, :4] = 255
        file = folder / "ab"[number // 30] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    return folder


class Brightness(nn.Module):
    """The score of the first class is the brightness of bright places, that of the second the mean of all places."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.AvgPool2d(2)
        self.threshold = nn.Threshold(0.8, 0.01)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        places = self.places(pictures).mean(1)
        return torch.stack([self.threshold(places).sum((1, 2)), places.mean((1, 2))], 1)


def preprocess(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures, explained for their labels at a layer of 8 x 8 places."""
    folder = tmp_path_factory.mktemp("job")
    attribution = LayerCAV(Brightness().eval(), ["places"], normalize="abs")
    datasets.explain_dataset(
        attribution,
        write_pictures(folder / "pictures"),
        folder / "explained",
        targets="label",
        preprocess=preprocess,
        progress=False,
    )
    return folder / "explained"


@pytest.fixture(scope="module")
def analysis(job: Path) -> Analysis:
    return analyze(job)


@pytest.fixture(scope="module")
def page_file(analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "summary.html"
    write_summary(path, analysis, lambda row: Image.open(row["path"]))
    return path


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A page of classes and pictures with hostile names."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(32, 4)).eval()
    items = [
        {"input": torch.rand(1, 4, 4), "label": number % 4, "id": HOSTILE[number % 4], "path": HOSTILE[number % 3]}
        for number in range(8)
    ]
    attribution = LayerCAV(model, ["0"], normalize="abs")
    datasets.explain_dataset(
        attribution, items, tmp_path / "job", targets="label", classes=HOSTILE, progress=False, workers=0
    )
    write_summary(tmp_path / "page.html", analyze(tmp_path / "job"))
    return tmp_path / "page.html"


def test_what_is_embedded_is_what_was_analysed(page_file: Path, analysis: Analysis, job: Path) -> None:
    data = data_of(page_file)
    assert data["reported"] == ["a"] == [one.name for one in analysis.reported]
    assert (data["layer"], data["rows"], data["analysed"], data["isFrame"]) == ("places", 60, 60, True)
    for shown, one in zip(data["classes"], analysis.classes, strict=True):
        assert shown["name"] == one.name
        assert (decoded(shown["mean"]) - one.mean).abs().max() < 1e-4
        assert [point["position"] for point in shown["points"]] == one.clustering.points[:, 0].argsort(
            stable=True
        ).tolist()
        assert {point["row"] for point in shown["points"]} == set(one.rows)
        for place, example in shown["examples"].items():
            row = datasets.open(job)[example["row"]].row
            assert one.rows[int(place)] == example["row"]
            assert (example["id"], example["score"]) == (row["id"], row["score"])
            assert example["link"] == Path(row["path"]).as_uri()
            assert (decoded(example["map"]) - one.maps[int(place)]).abs().max() < 1e-4
    standout = analysis.classes[0].clustering.standout
    assert standout is not None
    first = data["classes"][0]
    assert [side["count"] for side in first["sides"]] == [20, 10]
    assert first["place"] == list(standout.place)
    assert (decoded(first["sides"][0]["mean"]) - standout.mean).abs().max() < 1e-4
    others = [place for place in range(30) if place not in standout.members]
    assert (decoded(first["sides"][1]["mean"]) - analysis.classes[0].maps[others].mean(0)).abs().max() < 1e-4
    assert set(first["sides"][1]["examples"]) <= set(others)
    assert page_file.stat().st_size < 400_000


def test_pictures_are_those_of_the_rows(page_file: Path, job: Path) -> None:
    for example in data_of(page_file)["classes"][0]["examples"].values():
        kind, encoded = example["picture"]["source"].split(",")
        shown = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
        expected = Image.open(datasets.open(job)[example["row"]].row["path"])
        assert np.array_equal(np.asarray(shown), np.asarray(expected))
        assert kind == "data:image/png;base64"


def test_photographs_are_small(analysis: Analysis, tmp_path: Path) -> None:
    photograph = zoo.demo_picture()
    write_summary(tmp_path / "page.html", analysis, lambda row: photograph)
    for example in data_of(tmp_path / "page.html")["classes"][0]["examples"].values():
        source, width, height = (example["picture"][name] for name in ("source", "width", "height"))
        assert source.startswith("data:image/jpeg;base64,")
        assert max(width, height) == 128
        assert width / height == pytest.approx(photograph.width / photograph.height, rel=0.02)
        assert len(source) < 12_000
    assert photograph.size == zoo.demo_picture().size


def test_files_that_are_gone_leave_a_page_without_them(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures")
    attribution = LayerCAV(Brightness().eval(), ["places"], normalize="abs")
    datasets.explain_dataset(
        attribution, folder, tmp_path / "job", targets="label", preprocess=preprocess, progress=False
    )
    (folder / "a" / "00.png").unlink()
    write_summary(tmp_path / "page.html", analyze(tmp_path / "job"))
    data = data_of(tmp_path / "page.html")
    assert not data["isFrame"]
    pictures = {one["id"]: one["picture"] for shown in data["classes"] for one in shown["examples"].values()}
    assert all((picture is None) == (name == "a/00.png") for name, picture in pictures.items())


def test_hostile_names_stay_text(hostile: Path) -> None:
    page = hostile.read_text("utf-8")
    template = (Path(captum_cav.__file__).parent / "data" / "summary.html").read_text("utf-8")
    for tag in ("<script", "</script", "<img", "<!--"):
        assert page.count(tag) == template.count(tag)
    data = data_of(hostile)
    assert {shown["name"] for shown in data["classes"]} == set(HOSTILE)
    assert all(one["link"] is None for shown in data["classes"] for one in shown["examples"].values())


def test_the_page_names_no_address_and_only_parts_that_it_has() -> None:
    folder = Path(captum_cav.__file__).parent / "data"
    template = (folder / "summary.html").read_text("utf-8")
    shared = (folder / "shared.css").read_text("utf-8") + (folder / "shared.js").read_text("utf-8")
    assert not re.search(
        r"https?:(?!//www\.w3\.org/2000/svg)|\bfetch\(|XMLHttpRequest|@import|url\(", template + shared
    )
    assert "default-src 'none'" in template
    used = set(re.findall(r'\$\("([\w-]+)"\)', template + shared))
    there = set(re.findall(r'\bid="([\w-]+)"', template))
    assert used <= there
    assert set(re.findall(r'(?:aria-labelledby|aria-describedby|for)="([\w-]+)"', template)) <= there


def test_only_so_many_classes_are_shown(analysis: Analysis, tmp_path: Path) -> None:
    write_summary(tmp_path / "page.html", analysis, most_classes=1)
    data = data_of(tmp_path / "page.html")
    assert ([shown["name"] for shown in data["classes"]], data["count"]) == (["a"], 2)
    with raising(OptionError, ValueError, "most_classes is 0"):
        write_summary(tmp_path / "page.html", analysis, most_classes=0)


def test_the_example_of_the_documentation_runs(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = python_of(Path(__file__).parents[2] / "docs" / "shortcuts.md")
    monkeypatch.chdir(job.parent)
    exec(compile(example, "docs/shortcuts.md", "exec"), {})  # noqa: S102
    assert re.match(r"a \d+\.\d+ True\nb \d\.\d+ False\n", capsys.readouterr().out)
    assert data_of(job.parent / "summary.html")["reported"] == ["a"]


# The command


def test_the_command_writes_the_page_and_prints_a_table(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # its own page may be replaced
        assert cli.main(["summary", str(job)]) == 0
    said = capsys.readouterr().out
    assert "possible shortcuts at layer places: a\n" in said
    assert re.search(r"a +30 +\d+\.\d  20 pictures stand apart, most at row [12], column [12] of 8 x 8 places", said)
    assert re.search(r"b +30 +\d\.\d\n", said)
    assert re.search(r"page: .*explained/summary\.html \(", said)
    page = job / "summary.html"
    assert data_of(page)["classes"][0]["name"] == "a"
    page.write_text("notes of the user")
    assert cli.main(["summary", str(job)]) == 2
    assert "summary.html exists, and captum-cav did not make it as it is now" in capsys.readouterr().err
    assert page.read_text() == "notes of the user"
    assert cli.main(["summary", str(job), "--force"]) == 0
    assert data_of(page)["classes"][0]["name"] == "a"


def test_the_command_prints_json_alone(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "page.html"
    assert cli.main(["summary", str(job), "--json", "--sample", "25", "--output", str(output)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["reported"], found["page"], found["layer"]) == ([0], str(output), "places")
    assert [one["analysed"] for one in found["classes"]] == [25, 25]
    assert output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_folder"], "there is no folder no_such_folder; expected the output of captum-cav dataset"),
        (["."], r"\. holds no explained dataset"),
        (["JOB", "--layer", "place"], r"has no maps of 'place' \(did you mean 'places'\?\)"),
        (["JOB", "--sample", "0"], "--sample is 0; expected at least 1"),
        (["JOB", "--classes", "0"], "--classes is 0; expected at least 1"),
        (["JOB", "--seed", "-1"], "--seed is -1; expected 0 or more"),
        (["JOB", "--model", "vgg61"], "no network is named 'vgg61'"),
        (["JOB", "--output", "page.txt"], r"--output is page\.txt; expected a file that ends in \.html"),
        (["JOB", "--output", "."], "is a folder; give a file with --output FILE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_options_are_refused(
    arguments: list[str],
    message: str,
    job: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(job.rglob("*"))
    assert cli.main(["summary", *(str(job) if one == "JOB" else one for one in arguments)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []
    assert sorted(job.rglob("*")) == before


def test_maps_without_contributions_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = torch.rand(24, 1, 4, 4)
    pictures[:2] = 0
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(16, 2)).eval()
    dataset = TensorDataset(pictures, torch.zeros(24, dtype=torch.long))
    attribution = LayerCAV(model, ["0"], normalize="abs")
    datasets.explain_dataset(attribution, dataset, tmp_path / "job", targets="label", progress=False)
    assert cli.main(["summary", str(tmp_path / "job")]) == 1
    said = capsys.readouterr()
    assert "possible shortcuts at layer 0: none" in said.out
    assert "2 maps of 0 have no contributions and were left out" in said.err


def test_without_scikit_learn_the_command_says_how_to_install_it(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert cli.main(["summary", str(job), "--output", str(tmp_path / "page.html")]) == 2
    assert 'expected pip install "captum_cav[analysis]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# In a browser


@pytest.mark.slow
def test_the_page_opens_with_the_class_that_may_have_a_shortcut(page_file: Path, browse: Callable[..., Any]) -> None:
    page = browse(page_file)
    assert text(page, "verdict") == "Possible shortcut: a"
    assert text(page, "class-heading") == "a"
    assert "20 pictures of 30 stand" in text(page, "class-sentence")
    pressed = page.find_elements("css selector", "#classes [aria-pressed=true]")
    assert [one.text.split("\n")[0] for one in pressed] == ["a"]
    assert len(page.find_elements("css selector", "#scatter .point")) == 30
    assert len(page.find_elements("css selector", "#sides .tiles button")) == 16
    # The mark is red in the first mean map and not in the second.
    first, second = (
        np.asarray(page.execute_script("return [...arguments[0].getContext('2d').getImageData(0, 0, 2, 2).data]", one))
        for one in page.find_elements("css selector", "#sides .map canvas")
    )
    assert first[0] > 200 > first[1]
    assert first[3] > 200 > second[3]
    button(page, "classes", "b").click()
    assert text(page, "class-heading") == "b"
    assert "so nothing is reported" in text(page, "class-sentence")
    assert page.current_url.endswith("#class=b")
    page.refresh()
    assert text(page, "class-heading") == "b", "the address names the class"
    check_clean(page, page_file)


@pytest.mark.slow
def test_the_keyboard_does_everything(page_file: Path, browse: Callable[..., Any]) -> None:
    page = browse(page_file)
    button(page, "classes", "a").send_keys(DOWN)
    assert text(page, "class-heading") == "b"
    page.switch_to.active_element.send_keys(UP, UP)
    assert text(page, "class-heading") == "a"
    assert page.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    scatter = page.find_element("id", "scatter")
    scatter.send_keys(RIGHT, RIGHT, LEFT)
    points = data_of(page_file)["classes"][0]["points"]
    assert text(page, "point") == f"row {points[0]['row']}: {points[0]['id']}"
    assert page.find_element("id", "point").get_attribute("aria-live") == "polite"
    scatter.send_keys(ENTER)
    assert text(page, "dialog-heading") == points[0]["id"]
    page.switch_to.active_element.send_keys(ESCAPE)
    assert not page.find_element("id", "dialog").is_displayed()
    tile = page.find_element("css selector", "#sides .tiles button")
    tile.send_keys(ENTER)
    example = data_of(page_file)["classes"][0]["examples"][
        str(data_of(page_file)["classes"][0]["sides"][0]["examples"][0])
    ]
    assert text(page, "dialog-heading") == example["id"]
    assert page.find_element("css selector", "#link a").get_attribute("href") == example["link"]
    assert len(page.find_elements("css selector", "#views figure")) == 3
    page.find_element("id", "close").send_keys(ENTER)
    assert page.switch_to.active_element == tile
    check_clean(page, page_file)


@pytest.mark.slow
def test_tiles_show_what_is_chosen(page_file: Path, browse: Callable[..., Any]) -> None:
    page = browse(page_file)

    def shown() -> list[int]:
        """How many pictures and maps the first tile has."""
        tile = page.find_element("css selector", "#sides .tiles button")
        return [len(tile.find_elements("css selector", kind)) for kind in ("img", "canvas")]

    assert shown() == [1, 1]
    for name, expected in (("Pictures", [1, 0]), ("Maps", [0, 1]), ("Map over picture", [1, 1])):
        button(page, "looks", name).click()
        assert shown() == expected
    check_clean(page, page_file)


@pytest.mark.slow
def test_hostile_names_do_nothing_in_a_browser(hostile: Path, browse: Callable[..., Any]) -> None:
    page = browse(hostile)
    for name in [shown["name"] for shown in data_of(hostile)["classes"]]:
        assert page.execute_script("return document.getElementById('class-heading').textContent") == name
        page.find_element("css selector", "#whole .tiles button").click()
        page.find_element("id", "close").click()
        page.find_element("css selector", "#classes [aria-pressed=true]").send_keys(DOWN)
    assert page.execute_script("return document.scripts.length") == 2
    assert page.execute_script("return document.querySelectorAll('[onerror], img[src=x]').length") == 0
    assert page.find_elements("css selector", "a") == []
    check_clean(page, hostile)  # an open alert would have raised


@pytest.mark.slow
def test_light_and_dark_follow_the_system_and_the_toggle(page_file: Path, browse: Callable[..., Any]) -> None:
    for colours, other in (("light", "dark"), ("dark", "light")):
        page = browse(page_file, colours=colours)

        def brightness(page: Any = page) -> int:
            colour = page.find_element("tag name", "body").value_of_css_property("background-color")
            return sum(map(int, re.findall(r"\d+", colour)[:3]))

        assert (brightness() > 400) == (colours == "light")
        page.find_element("id", "theme").click()
        assert (brightness() > 400) == (other == "light")
        check_clean(page, page_file)


@pytest.mark.slow
def test_a_phone_has_one_column_and_nothing_to_scroll_sideways(page_file: Path, browse: Callable[..., Any]) -> None:
    page = browse(page_file, 390, 844)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    classes, *rest = page.find_elements("css selector", "main .card")
    assert {card.rect["x"] for card in rest if card.is_displayed()} == {classes.rect["x"]}
    page.find_element("css selector", "#sides .tiles button").click()
    assert page.find_element("id", "dialog").rect["width"] <= 390
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
