"""The cost benchmark measures what it says; how long anything takes is not tested."""

import json
import math
import sys

import pytest
import torch
from torch import nn

from benchmarks.cost import __main__ as command
from benchmarks.cost import compiled, dispatch, measure, networks, rows, setups
from captum_cav import InputCAV, LayerCAV

CPU = torch.device("cpu")


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3))
        self.head = nn.Linear(64, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).flatten(1))


def tiny() -> networks.Network:
    torch.manual_seed(0)
    layers = [f"features.{index}" for index in range(3)]
    return networks.Network(Tiny(), lambda samples: torch.randn(samples, 1, 8, 8), layers)


pytestmark = pytest.mark.usefixtures("frozen_heap")


@pytest.fixture(autouse=True)
def _tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(networks.NETWORKS, "tiny", tiny)
    monkeypatch.setattr(rows, "_prepare", lambda threads: None)
    monkeypatch.setattr(measure, "_MOST", 3)


@pytest.mark.parametrize("layers", [["features.0", "features.1", "features.2"], ["features.2"], []])
def test_floor_is_the_gradient_that_contributions_of_a_relu_network_come_from(layers: list[str]) -> None:
    setup = setups.Setup(tiny(), 2, layers, "paper", CPU)
    setup.model.double(), setattr(setup, "inputs", setup.inputs.double())
    (found,) = rows.gradient(setup, layers)()
    units = [setup.inputs]
    for module in setup.model.features:
        units.append(module(units[-1].clone()).detach())
    chosen = [units[int(name[-1]) + 1] for name in layers] or [setup.inputs]
    scores = setup.model(setup.inputs).detach()[:, 0]
    cav = LayerCAV(setup.model, layers) if layers else InputCAV(setup.model)
    ratios = cav.attribute(setup.inputs, 0)
    for unit, gradient, ratio in zip(chosen, found, ratios if layers else [ratios], strict=True):
        torch.testing.assert_close(unit * gradient / scores.reshape(-1, *[1] * (unit.dim() - 1)), ratio)


def test_floor_of_five_classes_has_the_gradients_of_each() -> None:
    setup = setups.Setup(tiny(), 1, ["features.1"], "paper", CPU)
    several = rows.gradient(setup, ["features.1"], [0, 3])()
    for target, (found,) in zip((0, 3), several, strict=True):
        torch.testing.assert_close(found, rows.gradient(setup, ["features.1"], [target])()[0][0])


@pytest.mark.parametrize("kind", rows.KINDS)
def test_each_kind_of_row_has_times_of_ours_and_the_floor(kind: str) -> None:
    row = rows.Row("tiny", 2, kind)
    cells = rows.time_row(row, CPU, 0, 60.0)
    for name in (rows.FLOOR, rows.FORWARD, rows.OURS):
        assert cells[name].samples >= 3
        assert not cells[name].reason
        assert cells[name].ratio is not None
    assert cells[rows.FLOOR].ratio == (1.0, 1.0, 1.0)
    assert command.shown(row, cells).startswith(f"| tiny/2/{kind} | 0.0")


def test_compiled_calls_have_columns_and_operations_are_counted() -> None:
    row = rows.Row("tiny", 2, "layers")
    cells = rows.time_row(row, CPU, 0, 60.0, ["replay"])
    for name in rows.COMPILED["replay"]:
        assert cells[name].ratio is not None, cells[name].reason
    counts = [cells[name].operations for name in (rows.FLOOR, rows.OURS, rows.REPLAY)]
    assert None not in counts
    assert 10 < counts[2] <= counts[1]
    assert f"| {' / '.join(map(str, counts))} |" in command.shown(row, cells)


def test_operations_are_counted_without_views() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    assert compiled.count_operations(lambda: (x.t() * 2).sum().detach()) == 2


@pytest.mark.parametrize("targets", [(0,), (0, 3)])
def test_the_compiled_floor_is_the_floor(targets: tuple[int, ...]) -> None:
    setup = setups.Setup(tiny(), 2, ["features.1", "features.2"], "paper", CPU)

    def floor(setup: setups.Setup) -> measure.Call:
        return rows.gradient(setup, setup.layers, targets)

    found = compiled.compiled_floor(floor, "replay")(setup)()
    expected = [one for of_target in floor(setup)() for one in of_target]
    assert all(map(torch.equal, found, expected))


def test_rivals_that_run_have_times() -> None:
    cells = {
        name: cell
        for kind in ("layers", "last", "input")
        for name, cell in rows.time_row(rows.Row("tiny", 1, kind), CPU, 0, 60.0).items()
    }
    for name in ("Captum LRP", "Captum LayerLRP", "Captum LayerGradCam", "Captum InputXGradient", "zennit"):
        assert cells[name].ratio is not None, cells[name].reason


def test_what_a_method_raised_is_its_reason() -> None:
    def refuse() -> None:
        raise TypeError("no rule | for ReLU6\nsecond line")

    cells = measure.take_turns({"floor": lambda: None, "other": refuse}, "floor", 0.0, CPU)
    assert cells["other"] == measure.Cell(reason="TypeError: no rule | for ReLU6\nsecond line")
    assert command._ratio(cells["other"]) == "TypeError: no rule \\| for ReLU6"


def test_quartiles_of_ratios_are_taken_round_by_round() -> None:
    samples = [measure.Sample(seconds, 0) for seconds in (2.0, 30.0, 4.0)]
    cell = measure._cell(samples, [1.0, 10.0, 4.0])
    assert cell.ratio == (1.5, 2.0, 2.5)
    assert cell.seconds == (3.0, 4.0, 17.0)


def hold() -> float:
    (torch.ones(8 << 20), torch.ones(8 << 20))  # 2 x 32 MiB, then freed
    return float(torch.ones(24 << 20)[0])  # 96 MiB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's /proc")
def test_peak_is_what_a_call_holds_at_its_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in measure.GIVING_BACK.items():
        monkeypatch.setenv(name, value)
    found = measure.in_fresh_process(measure.peak, hold, CPU)
    assert found is not None
    assert 95 < found < 110


def test_rows_without_a_match_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--rows", "vgg61/1/input"])
    assert "no row matches; a row is NETWORK/BATCH/KIND of vgg16, " in capsys.readouterr().err


@pytest.mark.slow
def test_cost_of_following_is_measured_for_each_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_ROUNDS", 1)
    monkeypatch.setattr(dispatch, "_LONG", 60)
    found = dispatch.measure(CPU, 0)
    assert {cost.name for cost in found.operations} >= {"view", "relu", "linear", "batch_norm"}
    assert all(math.isfinite(cost.ours) for cost in found.operations)
    assert found.followed > 12 * 20  # ViT-B has 12 blocks


@pytest.mark.slow
def test_command_writes_what_it_prints(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cost.json"
    command.main(["--rows", "lstm/1/last", "--seconds", "0.1", "--json", str(file)])
    report = json.loads(file.read_text())
    cells = report["rows"]["lstm/1/last"]
    assert report["command"].startswith("python -m benchmarks.cost --rows lstm/1/last")
    assert report["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert cells["ours"]["mebibytes"] > 0 or sys.platform != "linux"
    assert f"{cells['ours']['ratio'][1]:.3f}" in capsys.readouterr().out
