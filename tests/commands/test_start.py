"""What the command line loads, and when: wrong options end before torch is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torchvision

import captum_cav
from captum_cav import cli, comparison, metrics, presets
from captum_cav.commands import names
from captum_cav.comparison.methods import CONTROLS
from captum_cav.zoo import names as zoo_names

PICTURE = str(Path(captum_cav.__file__).parent / "data" / "dog_above_cat.png")
#: What takes long to import.
HEAVY = {"torch", "torchvision", "captum", "matplotlib", "numpy", "PIL", "tqdm"}


def started(*arguments: str) -> tuple[int, str, set[str]]:
    """The exit status of the command line in a new process, its last line of errors, and the modules it loaded."""
    code = (
        "import sys\n"
        "from captum_cav import cli\n"
        "try:\n"
        "    status = cli.main()\n"
        "except SystemExit as end:\n"
        "    status = end.code\n"
        "print('\\n' + ' '.join(sys.modules))\n"
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    *_, modules = done.stdout.splitlines()
    return done.returncode, done.stderr.rstrip().rpartition("\n")[2], set(modules.split())


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in ("demo", "compare", "text"))]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    status, _, loaded = started(*arguments)
    assert status == 0
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--colour", "red"], "unrecognized arguments: --colour red"),
        (["demo", "--model", "vgg61"], "no network is named 'vgg61'; near matches: vgg1"),
        (["demo", "--model", "no_module:make"], "cannot import no_module of 'no_module:make'"),
        (["demo", "--target", "tabbi"], "efficientnet_lite0 has no class 'tabbi'; near matches: tabby"),
        (["demo", "--model", "resnet18", "--target", "1000"], "resnet18 has no class 1000"),
        (["demo", "--depths", "0"], "--depths is 0; expected at least 1"),
        (["demo", "--weights", "no_such_file.pth"], "cannot read the weights no_such_file.pth: No such file"),
        (["explain", "no_such_file.png"], "cannot open the picture no_such_file.png: No such file"),
        (["compare", PICTURE, "--methods", "gradcan"], "unknown method 'gradcan' (did you mean 'gradcam'"),
        (["compare", PICTURE, "--measures", "deletoin"], "unknown measure 'deletoin' (did you mean 'deletion'"),
        (["compare", PICTURE, "--target", "1", "2"], "--target names 2 classes for 1 pictures"),
        (["compare", PICTURE, "--repeats", "0"], "--repeats is 0; expected at least 1"),
        (["compare", PICTURE, "--batch-size", "0"], "--batch-size is 0; expected at least 1"),
        (["report", "--presets", "gama"], "unknown preset 'gama' (did you mean 'gamma'"),
        (["reproduce", "--rules", "gama"], "unknown preset 'gama' (did you mean 'gamma'"),
        (["reproduce", "--region", "left"], "--region is 'left'; expected four numbers"),
        (["reproduce", "--classes", "tabby", "shepard"], "has no class 'shepard'"),
        (["dataset", "no_such_folder", "--output", "o"], "there is no folder, table or picture no_such_folder"),
        (["dataset", ".", "--output", "o", "--shard", "8/8"], "argument --shard: '8/8' is no part; expected I/N"),
        (["dataset", ".", "--output", "o", "--batch-size", "0"], "--batch-size is 0; expected at least 1"),
        (["dataset", ".", "--output", "o", "--workers", "-1"], "--workers is -1; expected at least 0"),
        (["dataset", ".", "--output", "o", "--engine", "ray", "--workers", "0"], "--workers is 0; expected at least 1"),
        (["dataset", ".", "--output", "o", "--rules", "gama"], "unknown preset 'gama' (did you mean 'gamma'"),
        (["dataset", ".", "--output", "o", "--target", "tabbi"], "has no class 'tabbi'; near matches: tabby"),
        (["dataset", ".", "--output", "o", "--target", "best", "tabby"], "--target names best and classes"),
        (["dataset", ".", "--output", "o", "--score", "box:0", "--target", "label"], "expected no --target beside it"),
        (["dataset", ".", "--output", "o", "--keep", "maps", "channels"], "--keep names maps and channels"),
        (["reproduce", PICTURE], "a picture of yours needs --classes CLASS OTHER and --region"),
        (["summary", "no_such_folder"], "there is no folder no_such_folder; expected the output of captum-cav dataset"),
    ],
    ids=lambda value: " ".join(value[-2:]).replace(PICTURE, "IMAGE") if isinstance(value, list) else "",
)
def test_a_wrong_option_ends_before_torch_loads(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, said, loaded = started(*arguments)
    assert status == 2
    assert message in said
    assert loaded.isdisjoint(HEAVY)


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"captum-cav {captum_cav.__version__}\n"


def test_the_names_of_options_are_those_of_the_registries() -> None:
    assert names.PRESETS == presets.NAMES
    assert (*presets.NAMES, presets.AUTO) == names.RULES
    assert names.METHODS == comparison.NAMES
    assert tuple(CONTROLS) == names.CONTROLS
    assert names.DEFAULT_METRICS == comparison.METRICS
    assert tuple(metrics.MEASURES) == names.METRICS


def test_the_names_in_torchvisions_sources_are_its_names() -> None:
    models = zoo_names.torchvision_models()
    assert sorted(models) == torchvision.models.list_models(module=torchvision.models)
    for model in models:
        weights = torchvision.models.get_model_weights(model).DEFAULT
        assert zoo_names.torchvision_classes() == tuple(weights.meta["categories"]), model


@pytest.mark.parametrize(
    ("option", "message"), [(["--model", "vgg61"], "near matches: vgg1"), (["--target", "tabbi"], "matches: tabby")]
)
def test_names_are_checked_later_where_the_sources_do_not_tell_them(
    option: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zoo_names.torchvision_classes.cache_clear()
    monkeypatch.setattr(zoo_names, "_torchvision_models_folder", lambda: tmp_path)
    try:
        assert zoo_names.torchvision_models() == zoo_names.torchvision_classes() == ()
        assert cli.main(["demo", *option, "--output", str(tmp_path)]) == 2
    finally:
        zoo_names.torchvision_classes.cache_clear()
    assert re.search(message, capsys.readouterr().err)
