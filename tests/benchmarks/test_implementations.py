"""The same function has the same map, whichever way transformers and torch.export compute it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import implementations
from benchmarks.coverage.problem import Problem
from benchmarks.coverage.transformers_models import CASES
from benchmarks.implementations import Builders, Comparison, compare, transformers_builders, with_constant_source
from tests.support.networks import fixed, network
from tests.support.small_networks import seeded

#: The operations of most families: norms and gates by hand, experts, a bias of positions, a convolution.
FEW = ("Bert", "Llama", "Mixtral", "T5", "Wav2Vec2")
#: The smallest classifier of each family that takes less than a minute.
CLASSIFIERS = """
    alexnet convnext_tiny densenet121 efficientnet_b0 googlenet mnasnet0_5 mobilenet_v2 mobilenet_v3_small
    regnet_x_400mf regnet_y_400mf resnet18 shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11_bn vit_b_32
""".split()


#: A view lies between the product of the experts in a batch and their bias. So LRP-epsilon meets the product alone, and
#: its epsilon of 1e-6 makes the difference (see "What cannot be told apart" in docs/invariance.md).
BEHIND_A_VIEW = ("GptOss", "batched_mm")


def is_known(row: Comparison) -> bool:
    """Whether a difference is one of those that cannot be told apart."""
    name, implementation = BEHIND_A_VIEW
    is_the_case = row.name.startswith(name) and implementation in row.implementation and row.rules != "paper"
    return is_the_case and row.map is not None and row.map < 1e-4


def check(rows: list[Comparison]) -> None:
    """Implementations that are the same function have the same map."""
    wrong = [row for row in rows if row.is_same_function and not row.is_right and not is_known(row)]
    assert not wrong, "\n".join(map(str, wrong))
    assert any(row.is_same_function for row in rows), "\n".join(map(str, rows))


@pytest.mark.parametrize("name", FEW)
def test_families_of_transformers(name: str) -> None:
    pytest.importorskip("transformers")
    check(list(compare("transformers", name, transformers_builders(CASES[name]))))


@pytest.mark.slow
def test_all_families_of_transformers() -> None:
    pytest.importorskip("transformers")
    check([row for name, builders in implementations.cases("transformers") for row in compare("", name, builders)])


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_exported_classifiers_of_torchvision(name: str) -> None:
    rows = list(compare("torchvision", name, implementations.torchvision_builders(name)))
    assert all(row.is_same_function for row in rows)
    check(rows)


def _small_network() -> Problem:
    torch.manual_seed(0)
    net = network("vit_small").double()
    return Problem(net, net, fixed(1, 3, 64, 64), 3)


@pytest.mark.slow
def test_an_exported_network() -> None:
    rows = list(compare("", "vit_small", implementations.exported_builders(_small_network)))
    check(rows)
    assert [row.implementation for row in rows[::3]] == ["exported", "unflattened", "core operations"]
    assert all((row.layer is not None) == (row.implementation == "unflattened") for row in rows)


# The benchmark itself -----------------------------------------------------------------------------------------------


def as_problem(function: nn.Module) -> Problem:
    return Problem(function, function, fixed(2, 4), 1)


class PartlyDetached(nn.Module):
    """A linear layer. A part of the output is computed from a constant copy of the input."""

    def __init__(self, part: float) -> None:
        super().__init__()
        with seeded():
            self.linear = nn.Linear(4, 3).double()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * (1 - self.part) + self.linear(x.detach()) * self.part


def refused() -> Problem:
    raise ValueError("not here\nand more")


def rows_of(builders: Builders) -> dict[str, Comparison]:
    return {row.implementation: row for row in compare("suite", "name", builders, ["paper"])}


def test_rows_say_what_differs() -> None:
    found = rows_of(
        {
            "first": lambda: as_problem(PartlyDetached(0.0)),
            "equal": lambda: as_problem(PartlyDetached(0.0)),
            "another map": lambda: as_problem(PartlyDetached(0.25)),
            "another function": lambda: as_problem(nn.Sequential(PartlyDetached(0.0), nn.Tanh())),
            "refused": refused,
        }
    )
    assert {name: (row.is_offered, row.is_same_function, row.is_right) for name, row in found.items()} == {
        "equal": (True, True, True),
        "another map": (True, True, False),
        "another function": (True, False, True),
        "refused": (False, False, False),
    }
    assert found["another map"].map == pytest.approx(0.25)
    assert str(found["refused"]).startswith("none  name refused")
    assert found["refused"].error == "ValueError: not here"
    assert implementations.summary("suite", found.values()) == (
        "suite: 0 of 1 networks with several implementations have equal maps"
    )


def test_distances_are_of_the_worst_sample_and_nan_is_wrong() -> None:
    expected = torch.tensor([[3.0, 4.0], [300.0, 400.0]])
    assert implementations.distance(expected + torch.tensor([[0.0, 0.5], [0.0, 0.0]]), expected) == pytest.approx(0.1)
    row = Comparison("", "", "", "", scores=0.0, map=float("nan"), delta=0.0)
    assert not row.is_right


def test_a_layer_in_the_middle_runs_once() -> None:
    shared = nn.ReLU()
    net = nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared, nn.Linear(4, 3)).double()
    assert implementations.middle_layer(as_problem(net)) == "2"
    assert implementations.middle_layer(as_problem(nn.ReLU())) is None


def test_the_inputs_of_a_decoder_are_explained_with_a_constant_source() -> None:
    pytest.importorskip("transformers")
    for name, source in (("T5", "input_ids"), ("Whisper", "input_features")):
        case = with_constant_source(CASES[name])
        assert list(case.given) == [source]
        score, _, inputs, target = case.build()
        assert score(inputs)[:, target].shape == (2,)


def test_cases_that_the_file_holds_are_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    path = tmp_path / "rows.json"
    arguments = ["--only", "DistilBert", "--rules", "paper", "--json", str(path)]
    implementations.main(arguments)
    written = json.loads(path.read_text())["rows"]
    assert [row["name"] for row in written] == ["DistilBert", "DistilBert padded"]
    first = capsys.readouterr().out
    assert first.startswith("ok    DistilBert sdpa paper")
    assert first.endswith("transformers: 2 of 2 networks with several implementations have equal maps\n")
    implementations.main(arguments)
    assert capsys.readouterr().out.count("\n") == 1
    assert json.loads(path.read_text())["rows"] == written
