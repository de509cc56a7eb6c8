"""What explains a batch of a dataset makes the host wait for nothing, and a dataset is explained on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from captum_cav import InputCAV, LayerCAV, datasets
from captum_cav.datasets.explaining import Explainer, Outputs, on_device
from tests.datasets import jobs
from tests.gpu.networks import on
from tests.gpu.reads import check_reads


def explained(attribution: Any, inputs: torch.Tensor, targets: Any, best: bool = False, **options: bool) -> Any:
    """What is measured on the device; with ``best``, the model has run before, as for the best class."""
    explainer = Explainer(
        attribution, **{"batch_size": 4, "keep_channels": False, "with_constants": True, "is_half": True} | options
    )
    # Which operation comes last is found out before, with the first picture.
    explainer._logits = explainer.model
    outputs: Outputs | None = explainer.outputs(inputs) if best else None
    return on_device(explainer, inputs, targets, outputs)


@pytest.mark.parametrize("normalize", ["abs", "score", None])
@pytest.mark.parametrize(
    "options",
    [{}, {"is_half": False}, {"keep_channels": True}, {"with_constants": False}, {"best": True}],
    ids=str,
)
def test_a_batch_waits_for_nothing(options: dict[str, bool], normalize: Any, cuda_or_meta: torch.device) -> None:
    model, inputs, layers = on("functional", cuda_or_meta)
    cav = LayerCAV(model, layers, normalize=normalize)
    check_reads("batch of a dataset", cuda_or_meta, explained, cav, inputs, [[2, 0, 1]], **options)
    check_reads("batch of a dataset", cuda_or_meta, explained, cav, inputs, [1, 0], **options)
    check_reads("batch of a dataset", cuda_or_meta, explained, InputCAV(model), inputs, [1], **options)


def test_log_odds_wait_for_nothing(cuda_or_meta: torch.device) -> None:
    model, inputs, layers = on("functional", cuda_or_meta)
    cav = LayerCAV(model, layers, normalize="abs", score="log_odds")
    check_reads("batch of a dataset", cuda_or_meta, explained, cav, inputs, [[2, 0, 1]])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_dataset_on_the_device(dtype: Any, device: torch.device, tmp_path: Path) -> None:
    cav = LayerCAV(jobs.network().to(device), jobs.LAYERS, normalize="abs")
    options = {"targets": "label", "dtype": dtype, "progress": False} | jobs.SIZES
    out = datasets.explain_dataset(cav, jobs.labelled(), tmp_path / "device", **options)
    expected = jobs.explain(jobs.labelled(), tmp_path / "host", targets="label", dtype="float32")
    assert out.manifest["settings"]["device"] == device.type
    for number in range(jobs.PICTURES):
        for layer in jobs.LAYERS:
            found, truth = out.map(number, layer), expected.map(number, layer)
            assert torch.allclose(found, truth, atol=1e-3 * float(truth.abs().max()))
