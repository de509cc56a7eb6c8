"""Versions of torch: the private names that captum_cav uses, and the faults of torch itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._inductor
import torch.utils._python_dispatch
import torch.utils._pytree
from packaging.version import Version
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import captum_cav
from captum_cav import LayerCAV, torch_graphs, torch_internals
from captum_cav.process_settings import SharedSetting
from tests.support.torch_limits import LIMITS, TORCH, Limit

ROOT = Path(captum_cav.__file__).parent
DOCS = Path(__file__).parents[1] / "docs" / "versions.md"
#: The oldest version that pyproject.toml admits.
OLDEST = "2.6"
#: Each private name: an object that has the name, and the first version of torch that has it there.
PRIVATE: dict[str, tuple[Any, str]] = {
    "_BatchNorm": (torch.nn.modules.batchnorm, OLDEST),
    "_C": (torch, OLDEST),
    "_DropoutNd": (torch.nn.modules.dropout, OLDEST),
    "_autograd": (torch._C, OLDEST),
    "_backward_hooks": (nn.Identity(), OLDEST),
    "_base": (torch.ones(1), OLDEST),
    "_buffers": (nn.Identity(), OLDEST),
    "_call_impl": (nn.Module, OLDEST),
    "_current_level": (torch.autograd.forward_ad, OLDEST),
    "_dynamo": (torch, OLDEST),
    "_forward_hooks": (nn.Identity(), OLDEST),
    "_forward_hooks_always_called": (nn.Identity(), OLDEST),
    "_forward_hooks_with_kwargs": (nn.Identity(), OLDEST),
    "_forward_pre_hooks": (nn.Identity(), OLDEST),
    "_forward_pre_hooks_with_kwargs": (nn.Identity(), OLDEST),
    "_functorch": (torch, OLDEST),
    "_get_current_graph_task_keep_graph": (torch._C._autograd, OLDEST),
    "_get_function_stack_at": (torch._C, OLDEST),
    "_global_forward_hooks": (nn.modules.module, OLDEST),
    "_global_forward_hooks_always_called": (nn.modules.module, OLDEST),
    "_global_forward_pre_hooks": (nn.modules.module, OLDEST),
    "_is_full_backward_hook": (nn.Identity(), OLDEST),
    "_len_torch_function_stack": (torch._C, OLDEST),
    "_metadata": (nn.Identity().state_dict(), OLDEST),
    "_modules": (nn.Identity(), OLDEST),
    "_native_batch_norm_legit_no_training": (torch.ops.aten, OLDEST),
    "_opname": (torch.ops.aten.add.Tensor, OLDEST),
    "_ops": (torch, OLDEST),
    "_orig_mod": (torch.compile(nn.Identity()), OLDEST),
    "_parameters": (nn.Identity(), OLDEST),
    "_pytree": (torch.utils, OLDEST),
    "_pop_torch_function_stack": (torch._C, OLDEST),
    "_sequence_nr": (torch.ones(1, requires_grad=True).exp().grad_fn, OLDEST),
    "_tensor": (torch, OLDEST),
    "_top_saved_tensors_default_hooks": (torch._C._autograd, "2.8"),
    "_unsafe_preserve_version_counter": (torch.autograd.grad_mode, OLDEST),
    "_vmap": (torch._vmap_internals, OLDEST),
    "_vmap_internals": (torch, OLDEST),
    "_version": (torch.ones(1), OLDEST),
    "_AutoDispatchBelowAutograd": (torch._C, OLDEST),
    "_VariableFunctions": (torch._C, OLDEST),
    "_cdata": (torch.ones(1).untyped_storage(), OLDEST),
    "_inductor": (torch, OLDEST),
    "_nn": (torch._C, OLDEST),
    "_op": (torch.ops.aten.add.Tensor, OLDEST),
    "_python_dispatch": (torch.utils, OLDEST),
    "_schema": (torch.ops.aten.add.Tensor, OLDEST),
    "_SpectralNorm": (torch.nn.utils.parametrizations, OLDEST),
}
#: Public names that not every version has, or that captum_cav replaces while a model runs.
PUBLIC: dict[str, tuple[Any, str]] = {
    "apply": (torch.autograd.Function, OLDEST),
    "ownership_token": (torch.autograd.graph.GradientEdge, "2.9"),
    "set_stance": (torch.compiler, OLDEST),
    "setup_context": (torch.autograd.Function, OLDEST),
    "setup_input_hook": (torch.utils.hooks.BackwardHook, OLDEST),
    "setup_output_hook": (torch.utils.hooks.BackwardHook, OLDEST),
}


def private_names(source: str) -> set[str]:
    """The names with a leading underscore that a module takes from elsewhere."""
    tree, taken = ast.parse(source), set()
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            taken |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            taken |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls", "sys"):
            taken.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            taken |= set(node.value.split("."))
    return {name for name in taken - own if name.startswith("_") and not name.startswith("__") and name != "_"}


def test_the_search_for_private_names_finds_them() -> None:
    source = """
import torch._ops
from torch.utils._pytree import _name
tensor._base, getattr(tensor, "_version"), "torch._C", self._own
"""
    assert private_names(source) == {"_ops", "_pytree", "_name", "_base", "_version", "_C"}


def test_two_modules_use_private_names_of_torch_and_the_table_lists_them() -> None:
    users = (torch_internals.__file__, torch_graphs.__file__)
    assert set().union(*(private_names(Path(file).read_text()) for file in users)) == set(PRIVATE)
    elsewhere = {
        path.relative_to(ROOT).as_posix(): found
        for path in sorted(ROOT.rglob("*.py"))
        if path.name not in ("torch_internals.py", "torch_graphs.py")
        and (found := private_names(path.read_text()) & set(PRIVATE))
    }
    assert elsewhere == {}


@pytest.mark.parametrize("name", [*PRIVATE, *PUBLIC])
def test_each_version_has_the_names_that_the_table_says(name: str) -> None:
    owner, first = {**PRIVATE, **PUBLIC}[name]
    assert hasattr(owner, name) == (Version(first) <= TORCH)


def test_the_oldest_version_is_the_one_that_is_asked_for() -> None:
    asked = (ROOT.parent / "pyproject.toml").read_text()
    assert f'"torch>={OLDEST}"' in asked
    assert "torch==" not in asked
    assert "torch<" not in asked


# What happens where a version lacks a name ----------------------------------------------------------------------------


def test_a_tensor_that_the_score_does_not_reach_may_be_gone() -> None:
    """Another process runs this test, because a version of torch that loses the node ends the process."""
    script = """
import torch
from captum_cav.propagation.taps import as_carrier
from captum_cav.torch_internals import edge_of
used, unused = as_carrier(torch.ones(2)), as_carrier(torch.ones(2))
edges = [edge_of(used), edge_of(unused)]
del unused
print(torch.autograd.grad((2 * used).sum(), edges, allow_unused=True))
"""
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT.parent
    )
    assert ran.stdout == "(tensor([2., 2.]), None)\n", ran.stderr


@pytest.fixture
def without_innermost_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch as before version 2.8, which does not tell the innermost hooks on saved tensors."""
    monkeypatch.setattr(torch_internals, "_innermost_hooks", None)
    monkeypatch.setattr(torch_internals, "_note_hooks", SharedSetting(torch_internals._noted_hooks))


@pytest.mark.usefixtures("without_innermost_hooks")
def test_without_the_innermost_hooks_the_contexts_are_noted() -> None:
    def entered() -> tuple[Any, Any]:
        return saved_tensors_hooks.__enter__, saved_tensors_hooks.__exit__

    before = entered()
    with torch_internals.patched_torch(lambda function, args, kwargs: None, lambda: True):
        assert torch_internals.hooks_on_saved_tensors() is None
        with saved_tensors_hooks(abs, abs) as _, saved_tensors_hooks(abs, abs):
            inner = torch_internals.hooks_on_saved_tensors()
            assert inner is not None
            with torch_internals.save_as_they_are(None):
                assert torch_internals.hooks_on_saved_tensors() is not inner
            assert torch_internals.hooks_on_saved_tensors() is inner
        assert torch_internals.hooks_on_saved_tensors() is None
    assert entered() == before


@pytest.mark.usefixtures("without_innermost_hooks")
def test_without_the_innermost_hooks_checkpoints_keep_their_values() -> None:
    torch.manual_seed(0)
    first, middle, calls = nn.Linear(3, 4), nn.Sequential(nn.GELU(), nn.Linear(4, 4), nn.Tanh()), []

    def run(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return middle(x)

    x = torch.randn(2, 3)
    found = LayerCAV(lambda x: checkpoint(run, first(x), use_reentrant=False), first).attribute(x, 1)
    assert torch.equal(found, LayerCAV(lambda x: middle(first(x)), first).attribute(x, 1))
    assert len(calls) == 1, "nothing is computed again"


# Faults of torch itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
def test_the_faults_of_torch_are_in_the_versions_that_the_docs_name(limit: Limit) -> None:
    row = next(line for line in DOCS.read_text().splitlines() if line.startswith(f"| {limit.said} "))
    assert f"| {limit.last_wrong} | {limit.first_right} |" in row
    if Version(limit.last_wrong) >= TORCH:
        assert not limit.is_right()
    if Version(limit.first_right) <= TORCH:
        assert limit.is_right()
