"""The files that commands write: nothing of the user's is overwritten, and an interruption leaves no half file."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import captum_cav
from captum_cav import cli
from captum_cav.commands import pictures
from captum_cav.commands.outputs import Outputs, json_text
from captum_cav.errors import InputError

PICTURE = str(Path(captum_cav.__file__).parent / "data" / "dog_above_cat.png")


def refused(outputs: Outputs, name: str) -> str:
    with pytest.raises(InputError) as refusal:
        outputs.plan(name)
    with pytest.raises(InputError), outputs.writing(name):
        pass
    return str(refusal.value)


def test_a_file_of_the_user_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "captum-cav did not make it as it is now" in refused(Outputs(tmp_path), "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    Outputs(tmp_path, force=True).write_text("notes.txt", "replaced")
    assert (tmp_path / "notes.txt").read_text() == "replaced"


def test_our_own_file_is_replaced_until_the_user_changes_it(tmp_path: Path) -> None:
    for text in ("one", "two"):
        Outputs(tmp_path).write_text("table.csv", text)
    (tmp_path / "table.csv").write_text("two, and a note of mine")
    assert "--force" in refused(Outputs(tmp_path), "table.csv")


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    shutil.copy(PICTURE, picture)
    (tmp_path / "link.png").symlink_to(picture)
    os.link(picture, tmp_path / "same.png")
    for name in ("a.png", "link.png", "same.png"):
        assert "is read by this command" in refused(Outputs(tmp_path, [picture], force=True), name)


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    assert "is a folder" in refused(Outputs(tmp_path, force=True), "a.png")


def test_an_interruption_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.write_text("table.csv", "whole")
    before = sorted(tmp_path.iterdir())

    def write() -> None:
        with outputs.writing("table.csv") as path:
            path.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert (tmp_path / "table.csv").read_text() == "whole"
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_record_protects_everything(tmp_path: Path) -> None:
    Outputs(tmp_path).write_text("table.csv", "one")
    for record in ("{", "[]"):
        (tmp_path / ".captum_cav_files.json").write_text(record)
        assert "--force" in refused(Outputs(tmp_path), "table.csv")


def test_json_has_no_nan() -> None:
    assert json.loads(json_text({"a": [float("nan"), 1.5], "b": (float("inf"),)})) == {"a": [None, 1.5], "b": [None]}


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_page_does_not_replace_its_picture(
    force: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "a.jpg"
    shutil.copy(PICTURE, picture)
    before = picture.read_bytes()
    assert cli.main(["report", str(picture), "--output", str(picture), *force]) == 2
    assert "is read by this command, so it is not overwritten" in capsys.readouterr().err
    assert picture.read_bytes() == before


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["demo"], "dog_above_cat_rules.png"),
        (["demo"], "photographs/dog.png"),
        (["explain", PICTURE, "--save-arrays"], "dog_above_cat_maps.npz"),
        (["explain", PICTURE], "shares.csv"),
        (["compare", PICTURE], "comparison.csv"),
        (["compare", PICTURE], "dog_above_cat_maps/manifest.json"),
        (["reproduce"], "table1.md"),
        (["report"], "page.html"),
    ],
)
def test_a_command_says_at_once_that_a_file_is_in_the_way(
    command: list[str], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    output = file if command == ["report"] else tmp_path
    assert cli.main([*command, "--output", str(output)]) == 2
    assert f"{file} exists, and captum-cav did not make it" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_folders_stand_for_their_pictures(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "inner").mkdir()
    assert pictures.find([str(tmp_path)]) == [tmp_path / "a.png", tmp_path / "b.JPG"]
    assert pictures.find([str(tmp_path / "notes.txt"), str(tmp_path / "notes.txt")]) == [tmp_path / "notes.txt"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("https://example.org/a.png", "it is an address; download the file"),
        ("missing.png", "cannot open the picture missing.png: No such file"),
        (".", "the folder . has no picture"),
    ],
)
def test_what_is_no_picture_is_named(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        pictures.find([name])


def test_ctrl_c_is_one_line_and_status_130(tmp_path: Path) -> None:
    """The model interrupts its own process as Ctrl-C does."""
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\ndef make():\n"
        # Shells let the processes that they start in the background ignore Ctrl-C.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(30)\n"
    )
    command = [sys.executable, "-m", "captum_cav", "explain", PICTURE, "--model", "slow:make", "--output", "out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(captum_cav.__file__).parents[1])}
    done = subprocess.run(  # noqa: S603
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert done.stderr.strip().splitlines() == ["captum-cav: interrupted"]
    assert done.stdout == ""


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    Outputs(tmp_path).write_text("ours.txt", "")
    (tmp_path / "usual.txt").write_text("")
    ours, usual = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours.txt", "usual.txt"))
    assert ours == usual
