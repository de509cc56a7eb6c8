"""What the numbers hang on: a job goes on only with the same settings, and a difference is named."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import LayerCAV, datasets, presets, rules
from captum_cav.datasets import layout
from captum_cav.datasets.describing import describe, fingerprint
from captum_cav.errors import InputError, OptionError
from tests.datasets import jobs


def changed_weight() -> nn.Module:
    net = jobs.network()
    net[7].bias.data[1] += 1e-3
    return net


def cav(net: nn.Module | None = None, layers: Any = jobs.LAYERS, **options: Any) -> LayerCAV:
    return LayerCAV(net or jobs.network(), layers, **{"normalize": "abs"} | options)


def brighter(picture: Any) -> torch.Tensor:
    return jobs.preprocess(picture) + 0.1


@pytest.mark.parametrize(
    ("make", "options", "difference"),
    [
        (lambda: cav(changed_weight()), {}, "weights was "),
        (lambda: cav(layers=["4"]), {}, "layers was ['4', '1'] and is ['4']"),
        (lambda: cav(rules="gamma"), {}, "rules: function conv1d was missing and is [GammaRule("),
        (lambda: cav(rules={"3": rules.GammaRule(0.5)}), {}, "rules: '3' was missing and is [GammaRule("),
        (lambda: cav(normalize="score"), {}, "normalize was abs and is score"),
        (lambda: cav(score="log_odds"), {}, "score was output and is log_odds"),
        (lambda: cav(call=0), {}, "call was None and is 0"),
        (cav, {"targets": "label"}, "targets was best and is label"),
        (cav, {"targets": [1, 2]}, "targets was best and is ['1', '2']"),
        (cav, {"keep": ["maps"]}, "keep was ['maps', 'scores', 'constants'] and is ['maps']"),
        (cav, {"dtype": "float32"}, "dtype was float16 and is float32"),
        (cav, {"batch_size": 3}, "batch_size was 2 and is 3"),
        (cav, {"shard_size": 8}, "shard_size was 4 and is 8"),
        (cav, {"preprocess": brighter}, "preprocess was tests.datasets.jobs.preprocess and is"),
        (cav, {"classes": ("a", "b", "x")}, "classes was ['a', 'b', 'c'] and is ['a', 'b', 'x']"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_other_settings_are_refused_and_named(
    make: Callable[[], LayerCAV], options: dict[str, Any], difference: str, finished: Path
) -> None:
    before = jobs.tree(finished / "out")
    with pytest.raises(OptionError, match="was begun with other settings") as error:
        explain(make(), finished, **options)
    assert difference in str(error.value)
    assert jobs.tree(finished / "out") == before, "nothing changed"


def explain(attribution: LayerCAV, folder: Path, **options: Any) -> Any:
    options = {"preprocess": jobs.preprocess, "workers": 0, "progress": False} | jobs.SIZES | options
    return datasets.explain_dataset(attribution, folder / "pictures", folder / "out", **options)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder with pictures and with the output of a job."""
    jobs.write_pictures(tmp_path / "pictures", 5)
    explain(cav(), tmp_path)
    return tmp_path


def test_several_differences_are_all_named(finished: Path) -> None:
    with pytest.raises(OptionError, match=r"settings: targets was best and is label; dtype was float16 and is float32"):
        explain(cav(), finished, targets="label", dtype="float32")


def test_a_preprocessing_that_changed_under_its_name_is_noticed(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess = jobs.preprocess

    @functools.wraps(preprocess)
    def other(picture: Any) -> torch.Tensor:
        return preprocess(picture) * 0.5

    with pytest.raises(OptionError, match=r"settings: first_picture was"):
        explain(cav(), finished, preprocess=other)


def test_another_version_is_named(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.raises(OptionError, match=r"versions: torch was .* and is 9\.9\.9"):
        explain(cav(), finished)


def test_what_changes_no_number_may_change(finished: Path) -> None:
    before = jobs.tree(finished / "out")
    explain(cav(copy.deepcopy(jobs.network())), finished, workers=1)
    explain(cav(rules=presets.paper()), finished, shard=(0, 3))
    assert jobs.tree(finished / "out") == before


def test_without_resume_an_output_is_refused(finished: Path) -> None:
    with pytest.raises(InputError, match=r"out holds a job already; give another output, or resume=True"):
        explain(cav(), finished, resume=False)


def test_more_pictures_than_before_are_refused(finished: Path) -> None:
    jobs.write_pictures(finished / "pictures", 7)
    with pytest.raises(
        InputError, match=r"pictures that the job in .* was not begun with: a/006.png, c/005.png\. Give"
    ):
        explain(cav(), finished)


@pytest.mark.parametrize("name", [layout.MANIFEST, layout.PICTURES])
def test_files_of_others_are_not_overwritten(name: str, tmp_path: Path) -> None:
    jobs.write_pictures(tmp_path / "pictures", 5)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name} exists and belongs to something else; give another output"):
        explain(cav(), tmp_path)
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_another_format_is_refused(finished: Path) -> None:
    job = finished / "out" / layout.JOB
    job.write_text(json.dumps(json.loads(job.read_text()) | {"format": 99}))
    with pytest.raises(InputError, match="has format 99; expected format 1"):
        explain(cav(), finished)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    jobs.write_pictures(tmp_path / "pictures", 5)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match=r"cannot write to the folder .*out: "):
        explain(cav(), tmp_path)


def test_a_function_as_the_model_has_no_weights_to_compare(tmp_path: Path) -> None:
    net = jobs.network()
    attribution = LayerCAV(lambda x: net(x), net[4], normalize="abs")
    out = datasets.explain_dataset(attribution, jobs.labelled(), tmp_path, progress=False, **jobs.SIZES)
    assert out.manifest["settings"]["weights"] is None
    assert out.layers == ["ReLU"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (rules.GammaRule(0.25), "GammaRule(bias='share', fold=True, gamma=0.25"),
        (functools.partial(torch.clamp, min=0), "partial("),
        ({"b", "a"}, "{'a', 'b'}"),
        (print, "builtins.print"),
        (jobs.preprocess, "tests.datasets.jobs.preprocess"),
        (nn.ReLU(), "ReLU()"),
        (torch.ones(2), "tensor("),
        ((1, [2.5, None]), "[1, [2.5, None]]"),
    ],
    ids=str,
)
def test_values_as_text(value: Any, text: str) -> None:
    assert describe(value).startswith(text)
    assert " at 0x" not in describe(value)


@pytest.mark.slow
def test_texts_are_the_same_in_another_process() -> None:
    code = (
        "from captum_cav import presets\n"
        "from captum_cav.datasets.describing import describe, fingerprint\n"
        "from tests.datasets import jobs\n"
        "print(describe(presets.gamma()), describe({'a', 'b', 'c'}), fingerprint(jobs.network().named_parameters()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    expected = (
        describe(presets.gamma()),
        describe({"a", "b", "c"}),
        fingerprint(jobs.network().named_parameters()),
    )
    assert done.stdout.strip() == " ".join(expected)


@pytest.mark.parametrize(
    "other",
    [
        [("a", torch.ones(2))],
        [("b", torch.zeros(2))],
        [("a", torch.zeros(2, dtype=torch.float16))],
        [("a", torch.zeros(2, 1))],
        [("a", torch.zeros(2)), ("b", torch.zeros(0))],
        [],
    ],
    ids=str,
)
def test_a_fingerprint_tells_tensors_apart(other: Any) -> None:
    assert fingerprint(other) != fingerprint([("a", torch.zeros(2))])
    assert fingerprint([("a", torch.zeros(4)[::2])]) == fingerprint([("a", torch.zeros(2))])
