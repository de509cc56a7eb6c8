"""Folders, patterns and tables of pictures, and what items of datasets may be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from captum_cav.datasets.sources import Listed, PictureFiles, find_pictures, picture_files, torch_dataset
from captum_cav.errors import InputError
from tests.datasets import jobs


def files(where: Any, classes: Any = ()) -> PictureFiles:
    return picture_files(where, jobs.preprocess, classes)


def test_a_folder_with_a_folder_for_each_class(tmp_path: Path) -> None:
    root, listed = find_pictures(jobs.write_pictures(tmp_path / "p", 5))
    assert root == (tmp_path / "p").resolve()
    assert listed == [
        Listed(name, name[0], name) for name in ("a/000.png", "a/003.png", "b/001.png", "b/004.png", "c/002.png")
    ]
    source = files(tmp_path / "p")
    assert source.classes == ("a", "b", "c")
    assert [source.load(index).label for index in range(5)] == [0, 0, 1, 1, 2]
    item = source.load(3)
    assert (item.index, item.id, item.path) == (3, "b/004.png", str(root / "b" / "004.png"))
    assert torch.equal(item.input, jobs.preprocess(Image.open(root / "b" / "004.png")))  # type: ignore[arg-type]


def test_a_folder_without_classes_and_what_is_no_picture(tmp_path: Path) -> None:
    jobs.write_pictures(tmp_path, 4)
    (tmp_path / "000.PNG").write_bytes((tmp_path / "a" / "000.png").read_bytes())
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    source = files(tmp_path)
    assert [one.id for one in source.listed] == ["000.PNG", "a/000.png", "a/003.png", "b/001.png", "c/002.png"]
    assert {source.load(index).label for index in range(5)} == {None}
    assert source.classes == ()


@pytest.mark.parametrize(
    ("names", "classes", "expected"),
    [
        (["cat", "dog"], ("bird", "dog", "Cat"), [2, 1]),  # names of classes
        (["10", "9"], ("x", "y", "z"), [10, 9]),  # indices
        (["n01", "n02"], ("tench", "goldfish"), [0, 1]),  # as many as classes: their order, as in ImageFolder
        (["n01", "n02"], ("tench", "goldfish", "shark"), [None, None]),  # nobody knows
        (["n01", "n02"], (), [0, 1]),
        (["crane", "dog"], ("crane", "dog", "crane"), [None, None]),  # the name of two classes
    ],
)
def test_the_class_of_a_label(names: list[str], classes: Any, expected: list[int | None], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    source = files(tmp_path, classes)
    assert {one.label: source.load(index).label for index, one in enumerate(source.listed)} == dict(
        zip(names, expected, strict=True)
    )


def test_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.write_pictures(tmp_path / "p", 5)
    monkeypatch.chdir(tmp_path)
    assert [one.id for one in files("p/[ab]/*.png").listed] == [
        "p/a/000.png",
        "p/a/003.png",
        "p/b/001.png",
        "p/b/004.png",
    ]
    assert len(files("p/**/*.png").listed) == 5
    assert len(files(str(tmp_path / "p" / "c" / "*"))) == 1
    assert files("p/a/003.png").load(0).error == ""


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table(tmp_path: Path) -> None:
    jobs.write_pictures(tmp_path, 4)
    absolute = tmp_path / "c" / "002.png"
    table = write_csv(tmp_path / "t.csv", f"id,file,label\nfirst,b/001.png,2\n,{absolute},\nnone,x.png,0\n")
    source = files(table)
    items = [source.load(index) for index in range(3)]
    assert [item.id for item in items] == ["first", "1", "none"]
    assert [item.label for item in items] == [2, None, 0]
    assert [item.path for item in items] == [str(tmp_path / "b" / "001.png"), str(absolute), str(tmp_path / "x.png")]
    assert [bool(item.error) for item in items] == [False, False, True]


def test_a_parquet_table(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    jobs.write_pictures(tmp_path, 4)
    parquet.write_table(pyarrow.table({"path": ["b/001.png", "c/002.png"], "label": [1, None]}), tmp_path / "t.parquet")
    source = files(tmp_path / "t.parquet")
    assert [(item.label, item.error) for item in map(source.load, range(2))] == [(1, ""), (None, "")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "picture_file,label\na.png,1\n", "has no column of paths; it has 'picture_file', 'label'; expected"),
        ("t.csv", "path,label\n", "the table .* has no rows"),
        pytest.param(
            "t.csv",
            "path\n\x00\n",
            None,
            marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="csv of Python 3.10 refuses the file"),
        ),
        ("t.parquet", "no table", "cannot read the table .*t.parquet"),
        ("none/t.csv", None, "cannot read the table .*: .*No such file"),
    ],
)
def test_tables_that_cannot_be_used(name: str, text: str | None, message: str | None, tmp_path: Path) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    if message is None:
        assert files(path).load(0).error, "a path that is none is a row with its error"
        return
    with pytest.raises(InputError, match=message):
        files(path)


def test_a_parquet_table_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "t.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"needs the package pyarrow, .* \(.*pyarrow.*\): pip install pyarrow"):
        files(tmp_path / "t.parquet")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the folder .* holds no picture; expected files that end in \.jpg"):
        files(tmp_path)


@pytest.mark.parametrize(
    ("item", "error"),
    [
        (torch.zeros(3), ""),
        ((torch.zeros(3), 1), ""),
        ([torch.zeros(3), torch.tensor(1)], ""),
        ({"x": torch.zeros(3), "y": 1}, ""),
        ((torch.zeros(3), 1, 2), "CAVTypeError: the dataset gave 3 values for one item; expected a tensor, a pair"),
        ((torch.zeros(3), "cat"), "CAVTypeError: the dataset gave the label 'cat' (str); expected a class index."),
        ((torch.zeros(3), 1.5), "CAVTypeError: the dataset gave the label 1.5 (float)"),
        ({"sound": 1}, "CAVTypeError: the dataset gave a dictionary with the keys 'sound'; expected the input under"),
        (None, "CAVTypeError: the dataset gave a NoneType; expected a tensor."),
    ],
    ids=lambda value: str(value)[:20],
)
def test_items_of_datasets(item: Any, error: str) -> None:
    loaded = torch_dataset([item], None, ()).load(0)
    assert loaded.error.startswith(error)
    assert bool(loaded.error) == bool(error)
    if not error:
        assert torch.equal(loaded.input, torch.zeros(3))  # type: ignore[arg-type]
        assert loaded.label in (None, 1)


def test_a_dataset_tells_its_classes() -> None:
    class Named(list[Any]):
        classes = ("cat", "dog")

    assert torch_dataset(Named([torch.zeros(3)]), None, ()).classes == ("cat", "dog")
    assert torch_dataset(Named([torch.zeros(3)]), None, ("a", "b")).classes == ("a", "b")
