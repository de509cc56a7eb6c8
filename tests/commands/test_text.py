"""``captum-cav text``: one page from a folder of transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from captum_cav import cli
from captum_cav.text import SequenceCAV
from tests.support.text_models import saved_gpt2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small GPT-2."""
    return saved_gpt2(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
def test_the_page_shows_what_the_attribution_gives(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "page.html"
    arguments = ["text", str(folder), "--prompt", "a cat", "é 你", "--answer", " sat", "!", "--device", "cpu"]
    assert cli.main([*arguments, "--output", str(file)]) == 0
    out = capsys.readouterr().out
    assert "'a cat' -> ' sat'" in out
    assert f"page: {file}" in out
    (embedded,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', file.read_text("utf-8"), re.S)
    texts = json.loads(embedded)["texts"]
    assert [word["text"] for word in texts[0]["words"]["words"]] == ["a", "cat", "sat"]
    assert [word["text"] for word in texts[1]["words"]["words"]] == ["é", "你", "!"]
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = SequenceCAV(model, tokenizer=tokenizer).attribute("a cat", " sat")
    (output,) = texts[0]["words"]["outputs"]
    expected = found.contributions.sum(0)
    sums = [expected[0], expected[1:5].sum(), 0]
    assert output["own"] == pytest.approx(float(expected[5:].sum()), rel=1e-4, abs=1e-6)
    assert output["contributions"] == pytest.approx([float(value) for value in sums], rel=1e-4, abs=1e-6)
    # The same command may replace its own page, and another file stays.
    assert cli.main([*arguments, "--output", str(file)]) == 0
    file.write_text("mine")
    assert cli.main([*arguments, "--output", str(file)]) == 2
    assert file.read_text() == "mine"


@pytest.mark.slow
def test_the_model_speaks_and_is_compared(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    more = ["--max-new-tokens", "2", "--contrast", "x", "--normalize", "abs", "--rules", "paper", "--device", "cpu"]
    assert cli.main(["text", str(folder), "--prompt", "ab", "--output", str(file), *more]) == 0
    (embedded,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', file.read_text("utf-8"), re.S)
    (text,) = json.loads(embedded)["texts"]
    assert text["shares"] is True
    assert {output["against"] for output in text["tokens"]["outputs"]} == {"x"}


def test_a_folder_without_a_model_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["text", str(tmp_path), "--prompt", "a", "--output", str(tmp_path / "page.html")]) == 2
    assert "holds no model of transformers: there is no config.json; expected a folder that" in capsys.readouterr().err


@pytest.mark.slow
def test_what_cannot_be_done_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "page.html"), "--device", "cpu"]
    for arguments, said in (
        ([str(folder), "--prompt", "a", "b", "--answer", "c"], "--answer has 1 texts for 2 prompts"),
        ([str(folder), "--prompt", ""], "a text is empty; expected at least one letter"),
        ([str(folder), "--prompt", "a", "--rules", "attnlrb"], "unknown preset 'attnlrb' (did you mean 'attnlrp'"),
        ([str(folder), "--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens is 0; expected at least 1"),
        ([str(folder), "--prompt", "a", "--layer", "transformer.wt"], "transformer.wte"),
    ):
        assert cli.main(["text", *arguments, *output]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert "Traceback" not in err
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["text", str(tmp_path), "--prompt", "a", *output]) == 2
    assert "could not be loaded; expected a causal language model and its tokenizer" in capsys.readouterr().err
