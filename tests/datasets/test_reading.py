"""Reading an output: lazily, in other processes, unfinished, and as a table or a file of HDF5."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from captum_cav import InputCAV, datasets
from captum_cav.datasets import ExplainedDataset, export_hdf5
from captum_cav.errors import InputError, LayerError, UnavailableError
from tests.datasets import jobs
from tests.datasets.test_explaining import Sizes


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> ExplainedDataset:
    return jobs.explain(jobs.labelled(), tmp_path_factory.mktemp("output"), targets="label")


def test_rows_by_number(out: ExplainedDataset) -> None:
    assert len(out) == jobs.PICTURES
    assert [out[number].row for number in range(len(out))] == list(out.rows())
    assert out[-1].row["row"] == 12
    for number in (13, -14):
        with pytest.raises(IndexError):
            out[number]


def test_a_table_of_pandas(out: ExplainedDataset) -> None:
    pandas = pytest.importorskip("pandas")
    table = out.table()
    assert list(table.columns) == list(out[0].row)
    assert table["target"].tolist() == [number % 3 for number in range(13)]
    assert table["raised:4"].dtype == "float64"
    assert str(table["position"].dtype) == "Int64"
    read = pandas.read_csv(out.folder / "shards" / "00000.csv")
    assert read["score"].tolist() == table["score"].tolist()[:4]


def test_a_table_without_pandas(out: ExplainedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UnavailableError, match=r"table\(\) needs pandas: pip install pandas"):
        out.table()


def test_an_output_is_a_dataset_of_torch(out: ExplainedDataset) -> None:
    loader = DataLoader(out, batch_size=5, collate_fn=lambda rows: torch.stack([row.maps["4"] for row in rows]))
    assert [tuple(batch.shape) for batch in loader] == [(5, 4, 4), (5, 4, 4), (3, 4, 4)]
    copied = pickle.loads(pickle.dumps(out))  # noqa: S301
    assert torch.equal(copied.map(7, "1"), out.map(7, "1"))


def test_an_unknown_layer(out: ExplainedDataset) -> None:
    with pytest.raises(LayerError, match=r"has no maps of '3'; expected one of '4', '1'"):
        out.map(0, "3")


def test_the_settings_are_told(out: ExplainedDataset) -> None:
    settings = out.manifest["settings"]
    assert settings["attribution"] == "LayerCAV"
    assert settings["normalize"] == "abs"
    assert settings["versions"]["torch"] == torch.__version__
    assert out.manifest["rows"] == 13
    assert [shard["first"] for shard in out.manifest["shards"]] == [0, 4, 8, 12]


def test_an_unfinished_job_can_be_read(tmp_path: Path) -> None:
    jobs.explain(jobs.labelled(), tmp_path, shard=(2, 3))
    out = datasets.open(tmp_path)
    assert not out.is_complete
    assert [row["row"] for row in out.rows()] == [8, 9, 10, 11]
    assert out[0].row["row"] == 8
    assert out.map(3, "4").shape == (4, 4)


def test_what_is_no_output(tmp_path: Path, out: ExplainedDataset) -> None:
    with pytest.raises(InputError, match=r"holds no explained dataset; pass the output of a job"):
        datasets.open(tmp_path)
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*job\.json"):
        datasets.open(tmp_path)
    (tmp_path / "job.json").write_text('{"format": 7, "settings": {}}')
    with pytest.raises(InputError, match="has format 7; this version of captum_cav reads format 1"):
        datasets.open(tmp_path)


def test_a_file_that_was_changed(tmp_path: Path) -> None:
    out = jobs.explain(jobs.labelled(5), tmp_path)
    (tmp_path / "shards" / "00000.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"cannot read .*00000\.safetensors: .* It was changed"):
        out.map(0, "4")
    (tmp_path / "shards" / "00001.csv").unlink()
    with pytest.raises(InputError, match=r"cannot read .*00001\.csv: No such file"):
        list(out.rows())


def test_hdf5_has_the_form_of_virelay(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    cav = InputCAV(jobs.network(), normalize="abs")
    options = {"targets": "label", "progress": False} | jobs.SIZES
    out = datasets.explain_dataset(cav, jobs.labelled(), tmp_path / "o", keep=["channels", "scores"], **options)
    assert export_hdf5(out, tmp_path / "maps.h5", "input") == 13
    with h5py.File(tmp_path / "maps.h5") as store:
        assert {name: (str(data.dtype), data.shape) for name, data in store.items()} == {
            "attribution": ("float32", (13, 3, 8, 8)),
            "index": ("uint32", (13,)),
            "label": ("uint32", (13,)),
            "prediction": ("float32", (13, 3)),
        }
        for number in range(13):
            assert torch.equal(torch.from_numpy(store["attribution"][number]), out.map(number, "input"))
            assert torch.equal(torch.from_numpy(store["prediction"][number]), out.scores(number))
            assert store["label"][number] == number % 3
    with pytest.raises(InputError, match=r"maps\.h5 exists; give the name of a new file"):
        export_hdf5(out, tmp_path / "maps.h5", "input")


def test_hdf5_of_maps_of_several_sizes(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    out = datasets.explain_dataset(jobs.attribution(), Sizes(), tmp_path / "o", progress=False, **jobs.SIZES)
    assert export_hdf5(out, tmp_path / "maps.h5", "1") == 9
    with h5py.File(tmp_path / "maps.h5") as store:
        assert [store["attribution"][name].shape for name in store["attribution"]] == [
            (1, *out.map(number, "1").shape) for number in range(9)
        ]


def test_hdf5_without_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = jobs.explain(jobs.labelled(5), tmp_path / "o", keep=["maps"])
    with pytest.raises(InputError, match="has no scores"):
        export_hdf5(out, tmp_path / "maps.h5", "4")
    assert not list(tmp_path.glob("*maps*"))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UnavailableError, match=r"needs h5py: pip install h5py"):
        export_hdf5(out, tmp_path / "maps.h5", "4")
