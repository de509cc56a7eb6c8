"""Coloured text, the page and the figures: what is shown is what was computed, and no text can harm."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from captum_cav.errors import InputError
from captum_cav.text import SequenceContributions, show_matrix, show_output, write_page
from captum_cav.text.html import coloured_text
from captum_cav.text.reading import read
from tests.support.pages import check_clean

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "<!--<script>",
    "{{data}}&\"quotes'\u2028",
]


def result(
    tokens: list[str], outputs: int, *, special: list[bool] | None = None, normalize: str | None = None
) -> SequenceContributions:
    """A result with known numbers; the last tokens are the output."""
    count = len(tokens)
    prompt = count - outputs
    numbers = torch.arange(1.0, outputs * count + 1).reshape(outputs, count) * (-1.0) ** torch.arange(count)
    later = torch.arange(count)[None] >= prompt + torch.arange(outputs)[:, None]
    numbers = numbers.masked_fill(later, 0)
    constants, unexplained = torch.linspace(1, 2, outputs), torch.linspace(0.1, 0.2, outputs)
    return SequenceContributions(
        contributions=numbers,
        scores=numbers.sum(1) + constants + unexplained,
        probabilities=torch.linspace(0.5, 0.9, outputs),
        constants=constants,
        unexplained=unexplained,
        tokens=tokens,
        token_ids=torch.arange(count),
        output_tokens=tokens[prompt:],
        output_ids=torch.arange(outputs),
        segments={"prompt": slice(0, prompt), "output": slice(prompt, count)},
        is_special=special or [False] * count,
        layer="embedding",
        normalize=normalize,
    )


STORY = ["<s>", "Ġthe", "Ġbas", "ket", "Ġfell", ",", "Ġand", "Ġro", "lled", "."]


def story(**options: Any) -> SequenceContributions:
    return result(STORY, 4, special=[True] + [False] * 9, **options)


def data_of(path: Path) -> dict[str, Any]:
    (embedded,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', path.read_text("utf-8"), re.S)
    data: dict[str, Any] = json.loads(embedded)
    return data


def test_words_have_the_sums_of_their_tokens() -> None:
    found = story()
    reading = read(found)
    assert [word.text for word in reading.words] == ["<s>", "the", "basket", "fell", ",", "and", "rolled", "."]
    assert [output.text for output in reading.outputs] == ["and", "rolled", "."]
    assert [output.column for output in reading.outputs] == [5, 6, 7]
    assert reading.segments == {"prompt": range(5), "output": range(5, 8)}
    rows = found.contributions
    torch.testing.assert_close(reading.contributions[0, 2], (rows[0, 2] + rows[0, 3]).double())
    torch.testing.assert_close(reading.contributions[1, 2], rows[1:3, 2:4].sum().double())
    assert [output.own for output in reading.outputs] == [0, float(rows[2, 7]), 0]
    assert float(reading.contributions[1, 6]) == 0  # the word itself
    for output, row in zip(reading.outputs, reading.contributions, strict=True):
        assert float(row.sum()) + output.own + output.constants + output.unexplained == pytest.approx(
            output.score, rel=1e-5
        )
    assert reading.outputs[1].probability == pytest.approx(float(found.probabilities[1] * found.probabilities[2]))  # type: ignore[index]
    assert len(read(found, joined=False).outputs) == 4


def test_the_output_of_an_encoder_decoder_begins_behind_its_start_token() -> None:
    found = result(["▁ein", "▁Hund", "<pad>", "▁a", "▁dog"], 2)
    parts = {"source": slice(0, 2), "output": slice(2, 5)}
    special = [False, False, True, False, False]
    reading = read(SequenceContributions(**{**vars(found), "segments": parts, "is_special": special}))
    assert [(output.text, output.column) for output in reading.outputs] == [("a", 3), ("dog", 4)]


def test_classes_are_no_words() -> None:
    found = result(["good", "film", "x", "y"], 2)
    classes = {"segments": {"text": slice(0, 4)}, "output_tokens": ["bad", "good"]}
    reading = read(SequenceContributions(**{**vars(found), **classes}))
    assert [(output.text, output.column) for output in reading.outputs] == [("bad", None), ("good", None)]


def test_the_page_has_the_numbers_of_the_result(tmp_path: Path) -> None:
    found = story()
    write_page(tmp_path / "page.html", found)
    (text,) = data_of(tmp_path / "page.html")["texts"]
    for level, joined in (("words", True), ("tokens", False)):
        reading = read(found, joined=joined)
        for shown, output, values in zip(text[level]["outputs"], reading.outputs, reading.contributions, strict=True):
            assert shown["contributions"] == pytest.approx(values.tolist(), rel=1e-5)
            assert shown["score"] == pytest.approx(output.score, rel=1e-5)
            assert shown["constants"] == pytest.approx(output.constants, rel=1e-5)
            assert shown["column"] == output.column
        assert [word["text"] for word in text[level]["words"]] == [word.text for word in reading.words]
    assert (text["shares"], text["layer"]) == (False, "embedding")
    write_page(tmp_path / "two.html", [found, story(normalize="abs")], "title")
    assert [text["shares"] for text in data_of(tmp_path / "two.html")["texts"]] == [False, True]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_a_part_of_the_page_or_of_the_notebook(text: str, tmp_path: Path) -> None:
    found = result([text, text, text], 1, special=[True, False, False])
    write_page(tmp_path / "page.html", SequenceContributions(**{**vars(found), "layer": text}), text)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count("</script>") == 2
    assert page.count("<script") == 2
    assert "<img" not in page
    (entry,) = data_of(tmp_path / "page.html")["texts"]
    assert entry["layer"] == text
    assert entry["tokens"]["words"][0]["text"].replace("\\u2028", "\u2028") == text
    notebook = coloured_text(found)
    assert "<img" not in notebook
    assert "<script" not in notebook


def test_coloured_text_shows_words_numbers_and_outputs() -> None:
    shown = story()._repr_html_()
    assert shown.count("<details>") == 3
    assert re.search(r"<span title=\"[+-][\d.]+\" style=\"[^\"]*\">basket</span>", shown)
    assert "opacity:.55" in shown  # the special token
    assert "red raised the score, blue lowered the score" in shown
    assert 'dir="auto"' in shown
    long = result(["a"] * 90, 45)
    assert "5 more outputs are not shown here" in coloured_text(long, joined=False)
    assert "% of the score" in coloured_text(story(normalize="abs"))


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    found = story()
    found.contributions[0, 0] = torch.nan
    calls: list[Callable[[], Any]] = [
        found._repr_html_,
        found.figure,
        lambda: found.figure(0),
        lambda: found.save_html(tmp_path / "page.html"),
    ]
    for call in calls:
        with pytest.raises(InputError, match="a contribution is not finite, as where a score is 0; expected"):
            call()
    with pytest.raises(InputError, match="results is empty"):
        write_page(tmp_path / "page.html", [])


def test_the_matrix_and_one_output_are_drawn() -> None:
    found = story(normalize="abs")
    figure, axis = show_matrix(found)
    assert axis.images[0].get_array().shape == (3, 8)  # type: ignore[union-attr]
    assert [label.get_text() for label in axis.get_xticklabels()][:4] == ["<s>", "the", "basket", "fell"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["and", "rolled", "."]
    figure, axis = show_output(found, 1)
    words = [text.get_text() for text in axis.texts]
    assert words[:6] == ["<s>", "the", "basket", "fell", ",", "and"]
    assert "rolled" not in words
    assert axis.get_title("left").startswith("“rolled”: score ")
    assert found.figure().axes
    assert found.figure(-1).axes
    with pytest.raises(InputError, match="output is 3; expected -3 to 2, for one of 3 outputs"):
        show_output(found, 3)
    assert figure is not None


# In a browser


def said(page: Any) -> str:
    return str(page.find_element("id", "said").text)


def sources(page: Any) -> dict[str, str]:
    rows = page.find_elements("css selector", "#sources tr")
    return {row.find_elements("tag name", "td")[0].text: row.find_elements("tag name", "td")[2].text for row in rows}


def backgrounds(page: Any) -> list[str]:
    return list(page.execute_script("return spans.map((span) => span.style.background)"))


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    hebrew = result(["▁שלום", "▁עולם", "▁מה", "▁שלומך"], 2)
    write_page(tmp_path / "page.html", [story(), hebrew, result([*HOSTILE, "Ġx"], 1)], "<b>Where</b> from?")
    return tmp_path / "page.html"


@pytest.mark.slow
def test_whoever_points_at_an_output_sees_its_sources(pages: Path, browse: Callable[..., Any]) -> None:
    from selenium.webdriver import ActionChains

    page = browse(pages)
    reading = read(story())
    assert said(page).startswith("all outputs together: score")
    everything = backgrounds(page)
    outputs = page.find_elements("css selector", ".output")
    assert [output.text for output in outputs] == ["and", "rolled", "."]
    ActionChains(page).move_to_element(outputs[1]).perform()
    assert said(page).startswith("rolled: score ")
    assert backgrounds(page) != everything
    shown = sources(page)
    values = dict(zip([word.text for word in reading.words], reading.contributions[1].tolist(), strict=True))
    assert {word: float(number.replace("\u2212", "-")) for word, number in shown.items()} == {
        word: pytest.approx(value, rel=5e-2) for word, value in values.items() if value
    }
    ActionChains(page).move_to_element(page.find_element("tag name", "h1")).perform()
    assert said(page).startswith("all outputs together")
    assert backgrounds(page) == everything
    outputs[2].click()
    ActionChains(page).move_to_element(page.find_element("tag name", "h1")).perform()
    assert said(page).startswith(".: score ")
    check_clean(page, pages)


@pytest.mark.slow
def test_the_keyboard_is_enough(pages: Path, browse: Callable[..., Any]) -> None:
    from selenium.webdriver import ActionChains, Keys

    page = browse(pages)

    def press(key: str) -> str:
        ActionChains(page).send_keys(key).perform()
        return said(page).partition(":")[0]

    assert press(Keys.ARROW_RIGHT) == "and"
    assert press(Keys.ARROW_RIGHT) == "rolled"
    assert press(Keys.END) == "."
    assert press(Keys.ARROW_LEFT) == "rolled"
    assert press(Keys.HOME) == "and"
    assert press(Keys.ESCAPE) == "all outputs together"
    page.find_element("xpath", "//button[text()='text 2']").click()
    assert press(Keys.ARROW_LEFT) == "מה"
    assert press(Keys.ARROW_LEFT) == "שלומך"  # to the left is forward in Hebrew
    page.find_element("xpath", "//button[text()='text 1']").click()
    page.find_element("xpath", "//button[text()='tokens']").click()
    assert len(page.find_elements("css selector", ".output")) == 4
    check_clean(page, pages)


@pytest.mark.slow
@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_fits_and_can_be_read(pages: Path, browse: Callable[..., Any], width: int, colours: str) -> None:
    page = browse(pages, width=width, colours=colours)
    for text in (1, 2, 3):
        page.find_element("xpath", f"//button[text()='text {text}']").click()
        page.find_elements("css selector", ".output")[0].click()
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        # The words on their colours, and the page behind half-transparent colours.
        contrast = page.execute_script(
            """
            const parse = (text) => text.match(/[\\d.]+/g).map(Number);
            const light = (rgb) => rgb.slice(0, 3).map((part) => (part / 255) ** 2.2)
              .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
            const card = parse(getComputedStyle(document.querySelector(".card")).backgroundColor);
            return Math.min(...spans.map((span) => {
              const style = getComputedStyle(span), box = parse(style.backgroundColor), alpha = box[3] ?? 1;
              const under = [0, 1, 2].map((index) => alpha * box[index] + (1 - alpha) * card[index]);
              const both = [light(parse(style.color)), light(under)].sort((one, other) => other - one);
              return (both[0] + 0.05) / (both[1] + 0.05);
            }));
            """
        )
        assert contrast >= 4.5
    assert page.find_element("tag name", "h1").text == "<b>Where</b> from?"
    page.find_element("id", "theme").click()
    other = {"light": "dark", "dark": "light"}[colours]
    assert page.execute_script("return document.documentElement.dataset.theme") == other
    assert page.find_element("id", "theme").text == f"{colours.capitalize()} page"
    check_clean(page, pages)
