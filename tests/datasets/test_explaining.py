"""The rows and maps of an output are what the attribution gives, picture by picture."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, IterableDataset

import captum_cav
from captum_cav import InputCAV, LayerCAV, NeuronCAV, datasets
from captum_cav.attribution.logits import logit_model
from captum_cav.compilation import repeated
from captum_cav.datasets import ExplainedDataset, explaining
from captum_cav.errors import CAVTypeError, InputError, OptionError, TargetError
from captum_cav.scores import Difference
from tests.datasets import jobs

NET = jobs.network()


def explain(attribution: Any, dataset: Any, output: Path, **options: Any) -> ExplainedDataset:
    options = {"dtype": "float32", "progress": False} | jobs.SIZES | options
    return datasets.explain_dataset(attribution, dataset, output, **options)


def alone(attribution: Any, picture: torch.Tensor, target: Any) -> tuple[list[torch.Tensor], list[float]]:
    """Maps and deltas of one picture."""
    maps, deltas = attribution.attribute(picture[None], target, return_convergence_delta=True)
    return [one.sum(1)[0] for one in maps], [float(one) for one in deltas]


@pytest.mark.parametrize("normalize", ["abs", "score", None])
@pytest.mark.parametrize("targets", ["best", "label"])
@pytest.mark.filterwarnings("ignore::captum_cav.errors.SignWarning")
def test_rows_and_maps_are_those_of_each_picture(targets: Any, normalize: Any, tmp_path: Path) -> None:
    cav = jobs.attribution(normalize=normalize)
    out = explain(cav, jobs.labelled(), tmp_path, targets=targets)
    assert len(out) == jobs.PICTURES
    with torch.no_grad():
        scores = NET(jobs.pictures())
    for number, (picture, label) in enumerate(jobs.labelled()):
        row, maps = out[number]
        best = int(scores[number].argmax())
        target = best if targets == "best" else int(label)
        expected, deltas = alone(cav, picture, target)
        score = float(scores[number, target])
        assert (row["row"], row["index"], row["id"]) == (number, number, str(number))
        assert (row["label"], row["target"], row["best"]) == (int(label), target, best)
        assert row["score"] == pytest.approx(score, rel=1e-5)
        assert row["probability"] == pytest.approx(float(scores[number].softmax(0)[target]), rel=1e-5)
        assert torch.allclose(out.scores(number), scores[number], atol=1e-6)
        for layer, one, delta in zip(jobs.LAYERS, expected, deltas, strict=True):
            assert torch.allclose(maps[layer], one, atol=1e-6 * float(one.abs().max()))
            assert torch.equal(out.map(number, layer), maps[layer])
            unit = {"abs": 1.0, "score": np.sign(score), None: 1 / abs(score)}[normalize]
            of_layer = dict(zip(jobs.LAYERS, cav.attribute(picture[None], target), strict=True))[layer] * unit
            assert row[f"raised:{layer}"] == pytest.approx(float(of_layer.clamp(min=0).sum()), rel=1e-4)
            assert row[f"lowered:{layer}"] == pytest.approx(float(of_layer.clamp(max=0).sum()), rel=1e-4, abs=1e-7)
            assert row[f"unexplained:{layer}"] == pytest.approx(delta * unit, abs=1e-5)
            parts = [row[f"{share}:{layer}"] for share in ("raised", "lowered", "constants", "unexplained")]
            assert sum(parts) == pytest.approx(np.sign(score), abs=1e-5)


class Counted(nn.Sequential):
    """A model that counts the samples of its passes."""

    samples = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.samples += len(x)
        return super().forward(x)


@pytest.mark.parametrize("options", [{}, {"targets": "best"}, {"targets": [2, 0]}, {"keep": ["maps"]}], ids=str)
def test_recorded_batches_leave_the_same_files(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cav = jobs.attribution()
    options = {"targets": "label"} | options
    explain(cav, jobs.labelled(), tmp_path / "usual", **options)
    monkeypatch.setattr(repeated, "RECORD_AFTER", 1)
    explain(cav, jobs.labelled(), tmp_path / "recorded", **options)
    explain(captum_cav.compile(cav), jobs.labelled(), tmp_path / "given", **options)
    assert jobs.tree(tmp_path / "usual") == jobs.tree(tmp_path / "recorded") == jobs.tree(tmp_path / "given")


def test_scores_need_no_pass_of_their_own(tmp_path: Path) -> None:
    """The pass of the attribution gives the scores. A recording calls no model at all."""
    net = Counted(*jobs.network()).eval()
    cav = LayerCAV(net, jobs.LAYERS, normalize="abs")
    explain(cav, jobs.labelled(), tmp_path / "usual", targets="label")
    # In a pass of the first picture, the job looks for a squashing function.
    assert net.samples == jobs.PICTURES + 1
    recorded = captum_cav.compile(cav)
    recorded.attribute(jobs.pictures(2), [0, 1], return_convergence_delta=True)
    net.samples = 0
    explain(recorded, jobs.labelled(), tmp_path / "recorded", targets="label")
    # The last picture is a batch of its own, for which nothing is recorded.
    assert net.samples == 2
    assert jobs.tree(tmp_path / "usual") == jobs.tree(tmp_path / "recorded")


def test_sums_of_large_layers_are_those_of_all_numbers() -> None:
    maps = torch.randn(5, 2**19, generator=torch.Generator().manual_seed(0))
    sums, positive = explaining._sums(maps)
    assert torch.allclose(sums.double(), maps.double().sum(1), atol=1e-2)
    assert torch.allclose(positive.double(), maps.double().clamp(min=0).sum(1), rtol=1e-5)


def test_the_share_of_constants_is_that_of_the_last_bias(tmp_path: Path) -> None:
    """Behind the last feature layer the only constant is the bias of the classifier."""
    out = explain(jobs.attribution(), jobs.labelled(), tmp_path, targets="label")
    for row in out.rows():
        bias = float(NET[7].bias.detach()[row["target"]])
        assert row["constants:4"] == pytest.approx(bias / abs(row["score"]), rel=1e-3)


def test_several_targets_have_a_row_each(tmp_path: Path) -> None:
    cav = jobs.attribution()
    out = explain(cav, jobs.labelled(5), tmp_path, targets=[2, 0])
    assert [(row["row"], row["index"], row["target"]) for row in out.rows()] == [
        (number, number // 2, (2, 0)[number % 2]) for number in range(10)
    ]
    for number in range(10):
        expected, _ = alone(cav, jobs.pictures(5)[number // 2], (2, 0)[number % 2])
        assert torch.allclose(out.map(number, "1"), expected[1], atol=1e-6)


def test_inputs_are_a_layer_and_channels_are_kept(tmp_path: Path) -> None:
    cav = InputCAV(NET, normalize="abs")
    out = explain(cav, jobs.labelled(), tmp_path / "maps", targets=1)
    kept = explain(cav, jobs.labelled(), tmp_path / "channels", targets=1, keep=["channels"])
    assert out.layers == kept.layers == ["input"]
    expected = cav.attribute(jobs.pictures(), 1)
    for number in range(jobs.PICTURES):
        assert torch.allclose(kept.map(number, "input"), expected[number], atol=1e-6)
        assert torch.allclose(out.map(number, "input"), expected[number].sum(0), atol=1e-6)
    assert next(kept.rows())["constants:input"] is None
    with pytest.raises(InputError, match="has no scores; expected keep="):
        kept.scores(0)
    rows_only = explain(cav, jobs.labelled(), tmp_path / "rows", targets=1, keep=["constants"])
    assert rows_only[0].maps == {}
    with pytest.raises(InputError, match="has no maps; expected keep="):
        rows_only.map(0, "input")


@pytest.mark.parametrize("score", ["output", "logit", "log_odds"])
@pytest.mark.parametrize("last", [nn.Identity, nn.Softmax, nn.LogSoftmax])
def test_scores_of_squashed_models(last: type[nn.Module], score: Any, tmp_path: Path) -> None:
    net = nn.Sequential(*jobs.network(), last() if last is nn.Identity else last(1))
    keep = ("maps", "scores") if (score, last) != ("output", nn.Identity) else ("maps", "scores", "constants")
    cav = LayerCAV(net, "4", normalize="abs", score=score)
    out = explain(cav, jobs.labelled(), tmp_path, targets=0, keep=keep)
    logits = NET(jobs.pictures()).detach()
    probabilities = logits.softmax(1)
    expected = {
        "output": net(jobs.pictures()).detach()[:, 0],
        "logit": logits[:, 0],
        "log_odds": logits[:, 0] - logits[:, 1:].logsumexp(1),
    }[score]
    for number, row in enumerate(out.rows()):
        assert row["score"] == pytest.approx(float(expected[number]), rel=1e-4, abs=1e-6)
        assert row["probability"] == pytest.approx(float(probabilities[number, 0]), rel=1e-4)
        assert torch.allclose(out.scores(number), logits[number], atol=1e-5)


@pytest.mark.parametrize("score", ["logit", "log_odds"])
@pytest.mark.parametrize("is_given_logits", [False, True])
def test_scores_of_sigmoids(score: Any, is_given_logits: bool, tmp_path: Path) -> None:
    """The log-odds of a sigmoid are its logit, and its probabilities are no softmax."""
    net: nn.Module = nn.Sequential(*jobs.network(), nn.Sigmoid())
    if is_given_logits:
        net = logit_model(net, jobs.pictures(1))
    out = explain(LayerCAV(net, "4", normalize="abs", score=score), jobs.labelled(), tmp_path, targets=0)
    logits = NET(jobs.pictures()).detach()
    for number, row in enumerate(out.rows()):
        # Logits alone do not tell that they are of a sigmoid.
        others = logits[number, 1:].logsumexp(0) if is_given_logits and score == "log_odds" else 0.0
        assert row["score"] == pytest.approx(float(logits[number, 0] - others), rel=1e-4, abs=1e-6)
        assert row["probability"] == pytest.approx(float(logits[number, 0].sigmoid()), rel=1e-4)
        parts = [row[f"{share}:4"] for share in ("raised", "lowered", "constants", "unexplained")]
        assert sum(parts) == pytest.approx(np.sign(row["score"]), abs=1e-5)


@pytest.mark.parametrize("score", ["logit", "log_odds"])
def test_constants_of_squashed_models(score: Any, tmp_path: Path) -> None:
    squashed, plain = nn.Sequential(*jobs.network(), nn.Softmax(1)), jobs.network()
    of_squashed, of_plain = (
        list(
            explain(
                LayerCAV(net, "4", normalize="abs", score=score), jobs.labelled(), tmp_path / str(index), targets=0
            ).rows()
        )
        for index, net in enumerate((squashed, plain))
    )
    for row, expected in zip(of_squashed, of_plain, strict=True):
        for name in ("score", "raised:4", "lowered:4", "constants:4"):
            assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


def test_constants_of_a_squashed_score_are_refused_where_their_sign_is_not_known(tmp_path: Path) -> None:
    net = nn.Sequential(*jobs.network(), nn.Sigmoid())
    with pytest.raises(OptionError, match=r'the model ends in sigmoid.*pass score="logit"'):
        explain(LayerCAV(net, "4", normalize="abs"), jobs.labelled(), tmp_path, targets=0)
    assert explain(LayerCAV(net, "4", normalize="abs", score="logit"), jobs.labelled(), tmp_path / "1", targets=0)


def test_a_function_as_the_score(tmp_path: Path) -> None:
    cav = LayerCAV(NET, "4", normalize="abs", score=Difference(0, 1))
    out = explain(cav, jobs.labelled(), tmp_path, targets=None)
    scores = NET(jobs.pictures()).detach()
    for number, row in enumerate(out.rows()):
        assert row["score"] == pytest.approx(float(scores[number, 0] - scores[number, 1]), abs=1e-6)
        assert (row["target"], row["probability"], row["best"]) == (None, None, None)
        assert row["raised:4"] + row["lowered:4"] + row["constants:4"] == pytest.approx(np.sign(row["score"]), abs=1e-5)


def test_methods_of_captum(tmp_path: Path) -> None:
    method = LayerGradCam(NET, NET[4])
    out = explain(method, jobs.labelled(), tmp_path / "1", targets=2, keep=("maps", "scores"))
    expected = method.attribute(jobs.pictures(), 2)
    assert out.layers == ["4"]
    assert torch.allclose(out.map(3, "4"), expected[3, 0].detach(), atol=1e-6)
    assert next(out.rows())["raised:4"] is None, "the unit is not known"
    method = IntegratedGradients(NET)
    out = explain(method, jobs.labelled(), tmp_path / "2", targets=2, keep=("maps",))
    assert torch.allclose(out.map(3, "input"), method.attribute(jobs.pictures(), target=2)[3].sum(0).float(), atol=1e-5)
    with pytest.raises(OptionError, match='keep holds "constants", which LayerGradCam does not measure'):
        explain(LayerGradCam(NET, NET[4]), jobs.labelled(), tmp_path / "3", targets=2)


class Sizes(Dataset[Any]):
    """Pictures of several sizes, as dictionaries."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> dict[str, Any]:
        size = (8, 12, 8 + 2 * (index % 2))[index % 3]
        picture = torch.rand(3, size, 8, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": picture, "labels": torch.tensor(index % 3), "id": f"n{index}", "path": f"{index}.png"}


def test_pictures_of_several_sizes(tmp_path: Path) -> None:
    cav = jobs.attribution()
    out = explain(cav, Sizes(), tmp_path, targets="label", batch_size=4, shard_size=8)
    for number in range(len(Sizes())):
        item = Sizes()[number]
        row, maps = out[number]
        assert (row["id"], row["path"], row["label"]) == (f"n{number}", f"{number}.png", number % 3)
        expected, _ = alone(cav, item["pixel_values"], number % 3)
        for layer, one in zip(jobs.LAYERS, expected, strict=True):
            assert torch.allclose(maps[layer], one, atol=1e-6), (number, layer)


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_half_precision_neither_overflows_nor_underflows(factor: float, tmp_path: Path) -> None:
    """With maps in units of a score that is huge or tiny, float16 itself would hold infinity or 0."""
    net = copy.deepcopy(NET).double()
    net[7].weight.data *= factor
    net[7].bias.data *= factor
    pictures = torch.utils.data.TensorDataset(jobs.pictures().double())
    items = [one for (one,) in pictures]
    cav = LayerCAV(net, jobs.LAYERS, normalize=None)
    out = explain(cav, items, tmp_path, targets=1, dtype="float16")
    for number, picture in enumerate(items):
        expected, _ = alone(cav, picture, 1)
        for layer, one in zip(jobs.LAYERS, expected, strict=True):
            found = out.map(number, layer).double()
            assert torch.isfinite(found).all()
            # Half a unit of the last of 11 bits, and of what is smaller than the largest number by 2 ** 29.
            assert ((found - one).abs() <= one.abs() * 2**-11 * 1.01 + one.abs().max() * 2**-38).all()


def test_half_precision_of_a_map_of_zeros(tmp_path: Path) -> None:
    class Zeros:
        forward_func = NET

        def attribute(self, inputs: torch.Tensor, target: Any) -> torch.Tensor:
            return torch.zeros(len(inputs), 2, 8, 8)

    out = explain(Zeros(), jobs.labelled(), tmp_path, targets=0, keep=("maps",), dtype="float16")
    assert torch.equal(out.map(0, "input"), torch.zeros(8, 8))


class Faulty(Dataset[Any]):
    """Item 1 raises, item 2 is NaN, the score of item 3 is 0, item 5 has a label that is no class."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Any:
        if index == 1:
            raise OSError("the disk\nis broken")
        picture = jobs.pictures()[index].clone()
        if index == 2:
            picture[0, 0, 0] = torch.nan
        if index == 3:
            picture = torch.zeros_like(picture)
        return picture, 9 if index == 5 else index % 3


@pytest.mark.filterwarnings("ignore::captum_cav.errors.ScoreWarning")
def test_what_is_wrong_with_a_picture_is_in_its_row(tmp_path: Path) -> None:
    net = jobs.network()
    for index in (0, 3, 7):
        nn.init.zeros_(net[index].bias)
    cav = LayerCAV(net, jobs.LAYERS, normalize="abs")
    out = explain(cav, Faulty(), tmp_path, targets="label", batch_size=4)
    errors = [row["error"] for row in out.rows()]
    assert errors[1] == "OSError: the disk is broken"
    assert errors[2] == "inputs holds NaN or infinity in sample 0; expected finite numbers."
    assert errors[3] == "the score is 0, so ratios to it mean nothing"
    assert errors[5].startswith("TargetError: target[0] is 9, out of range for output shape (1, 3)")
    assert [number for number, error in enumerate(errors) if not error] == [0, 4, 6]
    assert out.manifest["errors"] == 4
    for number in (0, 4, 6):
        expected, _ = alone(cav, Faulty()[number][0], number % 3)
        assert torch.allclose(out.map(number, "4"), expected[0], atol=1e-6)
    for number in (1, 2, 3, 5):
        assert out[number].maps == {}
        with pytest.raises(InputError, match=f"row {number} has no map: "):
            out.map(number, "4")


class AllBroken(Dataset[Any]):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Any:
        raise OSError("not mounted")


def test_a_job_of_which_nothing_works_ends_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of the first 4 pictures can be read; the first .*not mounted"):
        explain(jobs.attribution(), AllBroken(), tmp_path / "1")
    with pytest.raises(TargetError, match=r"none of the first 4 pictures can be explained.*out of range"):
        explain(jobs.attribution(), jobs.labelled(), tmp_path / "2", targets=7)
    without_labels = [picture for picture, _ in jobs.labelled()]
    with pytest.raises(TargetError, match='targets is "label", and the picture 0 has no label'):
        explain(jobs.attribution(), without_labels, tmp_path / "3", targets="label")


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"dataset": Endless()}, CAVTypeError, "can only be read from its beginning"),
        ({"dataset": jobs.pictures()}, CAVTypeError, r"dataset is a Tensor; .* \(for tensors torch.utils.data.TensorD"),
        ({"dataset": iter([])}, CAVTypeError, "dataset is a list_iterator; expected a map-style dataset"),
        ({"dataset": []}, InputError, "dataset has no items"),
        ({"dataset": "pictures"}, OptionError, "dataset is the path pictures; expected preprocess="),
        ({"dataset": "none", "preprocess": jobs.preprocess}, InputError, "there is no folder, table or picture none"),
        ({"attribution": 3}, CAVTypeError, "attribution is a int; expected an attribution such as LayerCAV"),
        ({"attribution": NeuronCAV(NET, "4")}, CAVTypeError, "NeuronCAV, which explains a neuron"),
        ({"targets": "worst"}, OptionError, 'targets is \'worst\'; expected "best" or "label"'),
        ({"targets": []}, OptionError, "targets is empty"),
        ({"keep": "maps"}, OptionError, r"keep is the text 'maps'; expected a list, such as keep=\('maps',\)"),
        ({"keep": ["map"]}, OptionError, 'keep is \'map\'; expected "maps", "channels", "scores" or "constants"'),
        ({"keep": ["maps", "channels"]}, OptionError, 'keep holds "maps" and "channels"'),
        ({"dtype": "int8"}, OptionError, 'dtype is \'int8\'; expected "float16" or "float32"'),
        ({"batch_size": 0}, OptionError, "batch_size is 0; expected an integer of at least 1"),
        ({"shard_size": 0}, OptionError, "shard_size is 0"),
        ({"engine": "spark"}, OptionError, 'engine is \'spark\'; expected "process" or "ray"'),
        ({"engine": "ray", "workers": 0}, OptionError, "workers is 0; expected an integer of at least 1"),
        ({"shard": (2, 2)}, OptionError, "shard is 2 of 2; expected a part from 0 to 1"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_wrong_arguments(wrong: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path) -> None:
    arguments = {"attribution": jobs.attribution(), "dataset": jobs.labelled()} | wrong
    with pytest.raises(kind, match=message):
        explain(arguments.pop("attribution"), arguments.pop("dataset"), tmp_path / "output", **arguments)
    assert not (tmp_path / "output").exists(), "nothing was written"


def test_pictures_as_items_are_preprocessed(tmp_path: Path) -> None:
    items = [Image.fromarray((one.permute(1, 2, 0).numpy() * 255).astype(np.uint8)) for one in jobs.pictures()]
    with pytest.raises(InputError, match=r"the dataset gave a Image; expected a tensor; pass preprocess=\.\.\."):
        explain(jobs.attribution(), items, tmp_path / "1", targets=0)
    out = explain(jobs.attribution(), items, tmp_path / "2", targets=0, preprocess=jobs.preprocess)
    expected, _ = alone(jobs.attribution(), jobs.preprocess(items[5]), 0)
    assert torch.allclose(out.map(5, "4"), expected[0], atol=1e-6)


class Random(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return torch.rand(3, 8, 8)


def test_a_dataset_with_random_transforms_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gives other numbers for item 0 when it is asked again"):
        explain(jobs.attribution(), Random(), tmp_path, targets=0)


def test_the_model_runs_once_for_each_batch(tmp_path: Path) -> None:
    net = jobs.network()
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    explain(LayerCAV(net, "4", normalize="abs"), jobs.labelled(), tmp_path, targets="label")
    # Seven batches; with the first one the model is asked once what its last operation is.
    assert len(calls) == 7 + 1
    assert len(net._forward_hooks) == 1
