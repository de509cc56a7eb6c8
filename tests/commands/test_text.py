"""``captum-cav text``: one page from a folder of transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from captum_cav import cli
from captum_cav.text import SequenceCAV
from tests.support.text_models import saved, saved_gpt2


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
    assert "could not be loaded; expected a model and its tokenizer" in capsys.readouterr().err


LABELS = {"id2label": {0: "BAD", 1: "GOOD", 2: "NONE"}, "label2id": {"BAD": 0, "GOOD": 1, "NONE": 2}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind of model that does not write on and on."""
    names = {
        "T5ForConditionalGeneration": {},
        "BertForSequenceClassification": LABELS,
        "BertForTokenClassification": LABELS,
        "BertModel": {},
        "BertForMaskedLM": {},
    }
    made = tmp_path_factory.mktemp("models")
    return {name: saved(made / name, name, **settings) for name, settings in names.items()}


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What the command prints as JSON; nothing else stands on standard output."""
    capsys.readouterr()
    assert cli.main(["text", *arguments, "--json", "--device", "cpu"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def model_and_tokenizer(folder: Path, loader: str) -> tuple[Any, Any]:
    import transformers

    model = getattr(transformers, loader).from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.slow
def test_other_kinds_of_models(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "page.html")
    # An encoder-decoder says something, and each word of it is explained.
    folder = folders["T5ForConditionalGeneration"]
    found = called(capsys, str(folder), "--prompt", "ab", "--answer", "c", "--output", file)
    (text,) = found["texts"]
    assert (found["kind"], text["answer"], found["files"]) == ("encoder-decoder", "c", [file])
    model, tokenizer = model_and_tokenizer(folder, "AutoModelForSeq2SeqLM")
    expected = SequenceCAV(model, tokenizer=tokenizer).attribute("ab", "c")
    assert text["outputs"][0]["score"] == pytest.approx(float(expected.scores[0]))
    # A classifier: the best class, or others by name and index.
    folder = folders["BertForSequenceClassification"]
    model, tokenizer = model_and_tokenizer(folder, "AutoModelForSequenceClassification")
    logits = model(**tokenizer("ab c", return_tensors="pt", return_token_type_ids=False)).logits[0].detach()
    (text,) = called(capsys, str(folder), "--prompt", "ab c", "--output", file)["texts"]
    assert text["outputs"][0]["text"] == model.config.id2label[int(logits.argmax())]
    (text,) = called(capsys, str(folder), "--prompt", "ab c", "--target", "good", "0", "--output", file)["texts"]
    assert [one["text"] for one in text["outputs"]] == ["GOOD", "BAD"]
    assert [one["score"] for one in text["outputs"]] == pytest.approx([float(logits[1]), float(logits[0])])
    assert text["words"] == ["ab", "c"]
    more = ["--target", "GOOD", "--contrast", "bad", "--output", file]
    (text,) = called(capsys, str(folder), "--prompt", "ab c", *more)["texts"]
    assert text["outputs"][0]["score"] == pytest.approx(float(logits[1] - logits[0]))
    # A classifier of tokens: the best class of each token, or one of a token.
    folder = folders["BertForTokenClassification"]
    model, tokenizer = model_and_tokenizer(folder, "AutoModelForTokenClassification")
    logits = model(**tokenizer("abc", return_tensors="pt", return_token_type_ids=False)).logits[0].detach()
    (text,) = called(capsys, str(folder), "--prompt", "abc", "--output", file)["texts"]
    assert [one["score"] for one in text["outputs"]] == pytest.approx(logits.max(1).values.tolist())
    (text,) = called(capsys, str(folder), "--prompt", "abc", "--target", "2:GOOD", "--output", file)["texts"]
    assert [one["score"] for one in text["outputs"]] == pytest.approx([float(logits[2, 1])])
    # An encoder of sentences compares two texts, and pools as the folder says.
    folder = folders["BertModel"]
    model, tokenizer = model_and_tokenizer(folder, "AutoModel")
    both = ["--prompt", "ab", "--similar-to", "abc", "--output", file]
    for pooling, setting in (("mean", None), ("first", "pooling_mode_cls_token"), ("mean", "pooling_mode_mean_tokens")):
        if setting:
            (folder / "1_Pooling").mkdir(exist_ok=True)
            settings = {"word_embedding_dimension": 16, setting: True, "include_prompt": True}
            (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
        (text,) = called(capsys, str(folder), *both)["texts"]
        cav = SequenceCAV(model, tokenizer=tokenizer, pooling=pooling)  # type: ignore[arg-type]
        assert text["outputs"][0]["score"] == pytest.approx(float(cav.attribute("ab", similar_to="abc").scores[0]))
        assert text["parts"] == {"first": [0, 1], "second": [1, 2]}
    assert cli.main(["text", str(folder), *both]) == 0
    assert "'ab' and 'abc': similarity" in capsys.readouterr().out
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    assert cli.main(["text", str(folder), *both]) == 2
    assert "asks for ['pooling_mode_max_tokens']; expected one of" in capsys.readouterr().err


@pytest.mark.slow
def test_options_that_do_not_fit_the_model_are_one_line(
    folder: Path, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, tokens = folders["BertForSequenceClassification"], folders["BertForTokenClassification"]
    for model, options, said in (
        (folder, ["--target", "GOOD"], "--target is not for this language model; expected --answer and --contrast"),
        (texts, ["--answer", "x"], "--answer is not for this classifier of texts; expected --target and --contrast"),
        (texts, ["--target", "nice"], "'nice'"),
        (
            tokens,
            ["--target", "GOOD"],
            "--target is 'GOOD'; expected POSITION:NAME_OR_INDEX with a position from",
        ),
        (tokens, ["--target", "2:GOOD"], "expected POSITION:NAME_OR_INDEX with a position from 0 to 1"),
        (folders["BertModel"], [], "this encoder of sentences compares two texts; expected --similar-to TEXT beside"),
        (folders["BertModel"], ["--similar-to", "a", "b"], "--similar-to has 2 texts for 1 prompts; expected one for"),
        (folders["BertForMaskedLM"], [], "holds BertForMaskedLM; expected one of these"),
    ):
        output = ["--output", str(tmp_path / "page.html"), "--device", "cpu"]
        assert cli.main(["text", str(model), "--prompt", "ab", *options, *output]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert "Traceback" not in err
    assert not (tmp_path / "page.html").exists()
