"""benchmarks.tables: what the benchmarks' README shows is what their files say."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import tables
from benchmarks.networks import DEPTHS

TEXT = tables.README.read_text()


def test_the_readme_holds_the_tables_of_the_files() -> None:
    assert tables.written(TEXT) == TEXT, "run python -m benchmarks.tables"


@pytest.mark.parametrize("network", ["squeezenet1_1", "efficientnet_lite0"])
@pytest.mark.parametrize("benchmark", ["localization", "faithfulness"])
def test_both_networks_have_tables(benchmark: str, network: str) -> None:
    assert f"<!-- table {benchmark}:{network} -->" in TEXT


def cells(*means: float | None) -> dict[str, Any]:
    return {f"layer {place}": {"mean": mean, "error": 0.01 * place} for place, mean in enumerate(means, 1)}


def test_methods_that_show_the_same_share_a_row_and_the_best_is_bold() -> None:
    results = {
        "random": cells(0.99, 0.001),
        "cav": cells(0.501, 0.25),
        "cav:epsilon": cells(0.499, 0.25),
        "gradcam": cells(0.25, None),
    }
    found = {"tables": {"Pointing": results, "Deletion": results}, "photographs": [1] * 9, "refused": {"lrp": "blind."}}
    high, low = "\n".join(tables._by_depth(found, "squeezenet1_1")).split("| Deletion")
    assert "| cav, cav:epsilon | **0.50** | **0.25** |\n| gradcam | 0.25 | - |" in high
    assert "| cav, cav:epsilon | 0.50 | **0.25** |\n| gradcam | **0.25** | - |" in low
    # No control is called the best.
    assert "| random | 0.99 | 0.00 |" in high
    assert "standard errors up to 0.02" in high
    assert low.endswith("9 photographs.\nNot `lrp`: blind.")


def cell(ratio: float | None, operations: int | None = None, reason: str = "") -> dict[str, Any]:
    numbers = None if ratio is None else [ratio - 0.01, ratio, ratio + 0.01]
    return {"seconds": numbers, "ratio": numbers, "operations": operations, "reason": reason}


def test_compiled_calls_stand_beside_the_floor() -> None:
    rows = {
        "resnet50/1/layers": {
            "floor": cell(1.0, 504),
            "forward only": cell(0.5),
            "ours": cell(1.02, 977),
            "ours, replayed": cell(0.94, 700),
            "floor, replayed": cell(0.98),
            "ours, inductor": cell(None, None, "RecordingError: off by 3 %\nmore"),
            "Captum LayerLRP": cell(2.0),
        },
        "lstm/1/layers": {"floor": cell(1.0, 20), "ours": cell(9.0, 4000)},
    }
    columns = "ours | ours, replayed | floor, replayed | ours, inductor"
    assert tables.of_compiled(rows) == [
        f"| network, batch | floor, s | {columns} | operations: floor / ours / ours, replayed |",
        "|---|---|---|---|---|---|---|",
        "| resnet50, 1 | 1.000 | 1.02 (1.01-1.03) | 0.94 (0.93-0.95) | 0.98 (0.97-0.99) | - | 504 / 977 / 700 |",
        "| lstm, 1 | 1.000 | 9.00 (8.99-9.01) | - | - | - | 20 / 4000 / - |",
        "",
        "resnet50/1/layers, ours, inductor: RecordingError: off by 3 %",
    ]


def test_replays_are_counted_and_refusals_have_reasons() -> None:
    def row(network: str, preset: str, outcome: str = "equal", reason: str = "") -> dict[str, Any]:
        return {"suite": "timm", "network": network, "preset": preset, "outcome": outcome, "reason": reason}

    rows = [row(network, preset) for network in ("one", "two") for preset in ("paper", "gamma")]
    rows += [row("three", preset, "refused", "reads | a number") for preset in ("paper", "gamma")]
    rows += [row("four", "paper"), row("four", "gamma", "different", "the bits differ"), row("five", "", "not built")]
    assert tables.of_replays(rows)[2:] == ["| timm | 5 | 3 of 3 equal | 2 of 3 equal | 2 |"]
    assert tables.refused_replays(rows)[2:] == [
        "| timm | three | paper, gamma | refused | reads \\| a number |",
        "| timm | four | gamma | different | the bits differ |",
        "| timm | five |  | not built |  |",
    ]


def test_the_agreement_with_effects_stands_in_one_table() -> None:
    def at(deep: float, inputs: float | None, error: float | None = 0.02) -> dict[str, Any]:
        return {"features.12": {"mean": deep, "error": error}, "input": {"mean": inputs, "error": error}}

    effects = {"input": {"mean": 0.9, "error": 0.01}}
    tables_of_it = {
        "Own class": {"cav": at(0.5, 0.4), "cav:pinpoint": at(0.7, 0.6), "effects": effects},
        "Alike: absolute correlation": {"cav": at(0.1, None), "cav:pinpoint": at(0.3, 0.4), "effects": effects},
        "Seconds of the processor": {"cav": {"all": {"mean": 0.25}}, "cav:pinpoint": {"all": {"mean": 0.5}}},
        "Own class, more than cav:pinpoint": {"cav": at(-0.2, -0.2)},
    }
    found = {"tables": tables_of_it, "photographs": [1] * 7}
    lines = list(tables._causes(found, "squeezenet1_1"))
    assert lines[0].startswith(
        "| SqueezeNet 1.1, 7 photographs | Own class: features.12 / input | Alike: features.12 /"
    )
    assert lines[2:] == [
        "| cav | 0.50 / 0.40 | 0.10 / - | -0.20 ± 0.02 | 0.25 |",
        "| cav:pinpoint | 0.70 / 0.60 | 0.30 / 0.40 | - | 0.50 |",
        "| effects | 0.90 | 0.90 | - | - |",
    ]


def test_all_networks_in_one_table() -> None:
    """The differences are means over the depths below the last activation, and then over photographs."""

    def differences(network: str, first: float, second: float) -> dict[str, Any]:
        # What is at and behind the last activation does not count.
        depths = DEPTHS[network]
        found = {depth: {"by_photograph": {"a": first, "b": second}} for depth in depths[2:]}
        return {depth: {"by_photograph": {"a": 9.0, "b": 9.0}} for depth in depths[:2]} | found

    def network(name: str, *values: float) -> dict[str, Any]:
        of_methods = {"cav": differences(name, *values), "cav:gamma": differences(name, 0.5, 0.5)}
        titles = [f"{one}, more than cav:pinpoint" for one in ("Own class", "Absent classes")]
        return {"photographs": [1, 2], "tables": {"Own class": {}, **dict.fromkeys(titles, of_methods)}}

    networks = {
        "squeezenet1_1": network("squeezenet1_1", 0.1, 0.3),
        "efficientnet_lite0": network("efficientnet_lite0", -0.1, -0.1),
        "efficientnet_lite1": network("efficientnet_lite1", 0.1, 0.1),
    }
    networks["efficientnet_lite1"]["tables"]["Own class, more than cav:pinpoint"]["only here"] = {}
    lines = tables.of_all_causes(networks)
    kinds = ("batch norm", "no batch norm")
    heads = [f"{title}: {kind}" for kind in kinds for title in ("Own class", "Absent classes")]
    assert lines[0] == f"| more than `pinpoint` | {' | '.join(heads)} |"
    assert lines[2:4] == [
        f"| cav:gamma | {' | '.join(['+0.500 ± 0.000'] * 4)} |",
        "| cav | +0.000 ± 0.058 | +0.000 ± 0.058 | +0.200 ± 0.100 | +0.200 ± 0.100 |",
    ]
    assert lines[-1] == "Photographs: EfficientNet-Lite0 2, EfficientNet-Lite1 2, SqueezeNet 1.1 2."
