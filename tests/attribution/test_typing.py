"""What a type checker knows of the results of attributions."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import captum_cav
from captum_cav import InputCAV, LayerCAV, NeuronCAV

pytest.importorskip("mypy", reason="needs mypy")

PRELUDE = """
import torch
from captum_cav import InputCAV, LayerCAV, NeuronCAV

net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
x = torch.ones(1, 2)
one, several = LayerCAV(net, "0", rules="gamma"), LayerCAV(net, ["0", net[1]])
inputs, neuron = InputCAV(net), NeuronCAV(net, net[0])

def without_brackets(cav: LayerCAV) -> None:
    cav.attribute(x)
"""
OF_LAYER = "Tensor | Any"
TYPES = {
    "one.attribute(x, 0)": OF_LAYER,
    "one.attribute(x, 0, return_convergence_delta=True)": f"tuple[{OF_LAYER}, Tensor]",
    "several.attribute(x, 0)": f"list[{OF_LAYER}]",
    "several.attribute(x, 0, return_convergence_delta=True)": f"tuple[list[{OF_LAYER}], list[Tensor]]",
    "inputs.attribute(x, 0)": "Tensor",
    "inputs.attribute((x,), 0)": "tuple[Tensor, ...]",
    "inputs.attribute((x,), 0, return_convergence_delta=True)": "tuple[tuple[Tensor, ...], Tensor]",
    "neuron.attribute(x, 0)": "Tensor",
    "neuron.attribute((x,), 0, return_convergence_delta=True)": "tuple[tuple[Tensor, ...], Tensor]",
}


@pytest.mark.slow
def test_mypy_knows_the_types(tmp_path: Path) -> None:
    (tmp_path / "typed.py").write_text(PRELUDE + "".join(f"reveal_type({call})\n" for call in TYPES))
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(tmp_path / "typed.py")]
    done = subprocess.run(  # noqa: S603
        command, cwd=Path(captum_cav.__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    revealed = re.findall(r'Revealed type is "(.+)"', done.stdout)
    short = [re.sub(r"torch\._tensor\.|builtins\.", "", one) for one in revealed]
    assert dict(zip(TYPES, short, strict=True)) == TYPES


@pytest.mark.parametrize("call", TYPES)
def test_the_results_have_these_types(call: str) -> None:
    names = {"torch": torch, "InputCAV": InputCAV, "LayerCAV": LayerCAV, "NeuronCAV": NeuronCAV}
    exec(PRELUDE, names)  # noqa: S102
    assert TYPES[call].replace(OF_LAYER, "Tensor").replace(", ...", "") == _kind(eval(call, names))  # noqa: S307


def _kind(result: object) -> str:
    if isinstance(result, torch.Tensor):
        return "Tensor"
    assert isinstance(result, (list, tuple))
    # All entries of a list have the same kind; a tuple of inputs here has one entry.
    kinds = list(dict.fromkeys(map(_kind, result))) if isinstance(result, list) else [_kind(part) for part in result]
    return f"{type(result).__name__}[{', '.join(kinds)}]"
