"""Models inside what torch puts around them (compiled, parallel, checkpointed, traced): the map is the same."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from captum_cav import InputCAV, LayerCAV
from captum_cav.errors import (
    LayerError,
    ModelError,
    UnsupportedOperationError,
)
from tests.support.attributions import check_same_as
from tests.support.errors import raising
from tests.support.small_networks import Apply, net_around, samples, small_net
from tests.support.tensors import assert_same
from tests.support.traces import InjectedError, inject

# What torch puts around a model --------------------------------------------------------------------------------------


def test_data_parallel() -> None:
    net, x = small_net(), samples()
    wrapped = nn.DataParallel(net, device_ids=None)
    check_same_as(net, wrapped, x)
    check_same_as(net, wrapped, x, "module.")
    assert torch.equal(
        LayerCAV(wrapped, net[0], device_ids=["cpu"]).attribute(x, 1), LayerCAV(net, "0").attribute(x, 1)
    )


def test_distributed_and_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    net, x = small_net(), samples()
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        with monkeypatch.context() as patched:
            # Its own forward pass may wait for other processes.
            inject(patched, wrapped, InjectedError("it was run"))
            check_same_as(net, wrapped, x)
            check_same_as(net, wrapped, x, "module.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one process holds all of it
            sharded = torch.distributed.fsdp.FullyShardedDataParallel(small_net(), device_id=torch.device("cpu"))
        said = r"is sharded over several processes; pass the whole model, on one device\.$"
        partly = nn.Sequential(nn.Linear(4, 4), sharded)
        with raising(ModelError, RuntimeError, "^the model " + said):
            InputCAV(sharded)
        with raising(ModelError, RuntimeError, r"^module '1' " + said):
            LayerCAV(partly, "0")
        with_parts = small_net()
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        distribute = torch.distributed.tensor.distribute_tensor
        with_parts[0].weight = nn.Parameter(distribute(with_parts[0].weight.detach(), mesh))
        said = r"^parameter '0\.weight' is a DTensor, of which this process holds a part .*; pass the model as it was"
        with raising(ModelError, RuntimeError, said):
            InputCAV(with_parts).attribute(x, 1)
    finally:
        torch.distributed.destroy_process_group()


def test_compiled() -> None:
    net, x = small_net(), samples()
    compilations: list[Any] = []

    def counting(graph: Any, _: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    try:
        wrapped = torch.compile(net, backend=counting)
        check_same_as(net, wrapped, x)
        check_same_as(net, wrapped, x, "_orig_mod.")
        assert not compilations
        wrapped(x)
        assert compilations
        check_same_as(net, wrapped, x)
        # A part of a model that is compiled.
        partly = nn.Sequential(net[0], torch.compile(net[1:], backend=counting))
        runs = len(compilations)
        check_same_as(net, partly, x)
        assert len(compilations) == runs
        partly(x)
        assert len(compilations) > runs
    finally:
        torch._dynamo.reset()


def test_an_attribution_within_a_compiled_function() -> None:
    net, x = small_net(), samples()
    expected = InputCAV(net).attribute(x, 1)
    try:
        found = torch.compile(lambda x: 2 * InputCAV(net).attribute(x, 1), backend="eager")(x)
    finally:
        torch._dynamo.reset()
    assert torch.equal(found, 2 * expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_scripted_traced_exported_and_as_a_graph() -> None:
    net, x = small_net(), samples()
    said = r"is a scripted or traced module, whose operations cannot be seen; pass the eager model it was made from"
    for made in (torch.jit.script(net), torch.jit.trace(net, x)):
        partly = nn.Sequential(nn.Linear(4, 4), nn.Sequential(made))
        with raising(ModelError, RuntimeError, "^the model " + said):
            LayerCAV(made, "0")
        with raising(ModelError, RuntimeError, r"^module '1\.0' " + said):
            InputCAV(partly)
    check_same_as(net, torch.fx.symbolic_trace(net), x)
    exported = torch.export.export(net, (x,)).module()
    assert torch.equal(InputCAV(exported).attribute(x, 1), InputCAV(net).attribute(x, 1))


def test_activation_checkpoints() -> None:
    plain = net_around(nn.GELU(), nn.Linear(4, 4).double(), nn.Tanh())
    x, calls = samples().double(), []

    def around(reentrant: bool) -> Any:
        def run(x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return plain.middle(x)

        return lambda x: plain.last(checkpoint(run, plain.first(x), use_reentrant=reentrant))

    layer = plain.first
    found = LayerCAV(around(False), layer).attribute(x, 1, return_convergence_delta=True)
    assert_same(found, LayerCAV(plain, layer).attribute(x, 1, return_convergence_delta=True))
    assert_same(LayerCAV(around(False), layer).attribute(x, 1), found[0])
    assert len(calls) == 2, "nothing is computed again"
    said = r"was made by 'CheckpointFunctionBackward', which captum_cav could not see \(.*reentrant checkpointing"
    with raising(UnsupportedOperationError, NotImplementedError, said, plain):
        LayerCAV(around(True), layer).attribute(x, 1)


class Block(nn.Module):
    """Every kind of rule: convolution, batch norm, an activation with a ratio, a gate, attention, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.gate = nn.Conv2d(4, 4, 1)
        self.values = nn.Linear(4, 4)
        self.layer_norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(self.norm(self.convolution(x)))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        tokens = self.layer_norm(y.flatten(2).transpose(1, 2))
        attended = F.scaled_dot_product_attention(tokens, tokens, self.values(tokens))
        return x + attended.transpose(1, 2).reshape(x.shape)


class Net(nn.Module):
    """Two blocks, run as they are or by something that is given each block and its input."""

    def __init__(self, run: Callable[[nn.Module, torch.Tensor], torch.Tensor] = lambda block, x: block(x)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.first, self.second = Block(), Block()
        self.head = nn.Linear(4, 5)
        self.run = run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu_(self.stem(x))
        x = self.run(self.second, self.run(self.first, x))
        return self.head(x.mean((2, 3)))


def net(**options: Any) -> Net:
    torch.manual_seed(0)
    made = Net(**options).double().eval()
    for block in (made.first, made.second):
        block.norm.running_mean.normal_()
        block.norm.running_var.uniform_(0.5, 1.5)
    return made


X = torch.randn(2, 3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def expected(layer: str = "first.convolution") -> torch.Tensor:
    found: torch.Tensor = LayerCAV(net(), layer).attribute(X, 2)
    return found


def check(model: nn.Module, layer: Any = "first.convolution") -> None:
    found, delta = LayerCAV(model, layer).attribute(X, 2, return_convergence_delta=True)
    torch.testing.assert_close(found, expected(), rtol=1e-9, atol=1e-12)
    assert delta.shape == (2,)
    inputs, delta = InputCAV(model).attribute(X, 2, return_convergence_delta=True)
    torch.testing.assert_close(inputs, InputCAV(net()).attribute(X, 2), rtol=1e-9, atol=1e-12)
    assert delta.abs().max() < 1e-12


@pytest.fixture
def compiled_by_eager() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiled_by_eager")
class TestCompiled:
    def test_a_compiled_model_is_its_eager_original(self) -> None:
        model = torch.compile(net(), backend="eager")
        check(model)
        check(model, "_orig_mod.first.convolution")
        check(model, model.first.convolution)

    def test_a_model_that_compiled_itself_is_its_eager_original(self) -> None:
        model = net()
        model.compile(backend="eager")
        check(model)

    def test_a_compiled_part_runs_as_it_was_written(self) -> None:
        model = net()
        model.second = torch.compile(model.second, backend="eager")
        before = model(X)
        check(model)
        torch.testing.assert_close(model(X), before)

    def test_a_compiled_function_runs_as_it_was_written(self) -> None:
        compiled = torch.compile(lambda block, x: block(x), backend="eager")
        check(net(run=compiled))

    def test_the_compiler_is_as_before_after_an_error_and_after_threads(self) -> None:
        runs: list[int] = []

        def counting(graph: Any, _: Any) -> Any:
            runs.append(1)
            return graph.forward

        with pytest.raises(UnsupportedOperationError):
            InputCAV(lambda x: torch.special.i0(x).sum((1, 2, 3))).attribute(X)
        model = net()
        model.second = torch.compile(model.second, backend=counting)
        explain = LayerCAV(model, "first.convolution")
        threads = [threading.Thread(target=explain.attribute, args=(X, 1)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not runs, "it was compiled under the attribution"
        model(X)
        assert runs, "it is compiled no more"


class TestParallel:
    def test_data_parallel_is_unwrapped(self) -> None:
        model = nn.DataParallel(net())
        check(model)
        check(model, "module.first.convolution")

    def test_distributed_data_parallel_is_unwrapped(self, tmp_path: Path) -> None:
        if not torch.distributed.is_available():
            pytest.skip("this torch has no torch.distributed")
        store = f"file://{tmp_path / 'store'}"
        torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        try:
            check(nn.parallel.DistributedDataParallel(net()))
        finally:
            torch.distributed.destroy_process_group()

    def test_an_unknown_name_in_a_wrapper_is_refused_with_those_that_are_near(self) -> None:
        with pytest.raises(LayerError, match=r"unknown layer 'frist' \(did you mean 'first'"):
            LayerCAV(nn.DataParallel(net()), "module.frist")

    def test_a_sharded_model_is_refused(self) -> None:
        class FullyShardedDataParallel(nn.Module):
            pass

        with pytest.raises(ModelError, match="module '0' is sharded over several processes"):
            InputCAV(nn.Sequential(FullyShardedDataParallel()))


class TestCheckpointed:
    def test_nothing_is_recomputed(self) -> None:
        calls = []

        def run(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
            calls.append(block)
            return block(x)

        model = net(run=lambda block, x: checkpoint(run, block, x, use_reentrant=False))
        check(model)
        assert len(calls) == 4, "two blocks, two attributions"

    def test_hooks_of_the_caller_on_saved_tensors_are_kept(self) -> None:
        packed = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            packed.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            check(net())
        assert packed

    def test_reentrant_checkpoints_are_refused_by_name(self) -> None:
        model = net(run=lambda block, x: checkpoint(block, x, use_reentrant=True))
        with pytest.raises(UnsupportedOperationError, match=r"CheckpointFunctionBackward.* reentrant checkpointing"):
            LayerCAV(model, "stem").attribute(X, 2)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        assert ctx.needs_input_grad == (True,)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise AssertionError("its own gradient was used")


class Scaled(torch.autograd.Function):
    """Sets its context up apart, returns two tensors, writes over one it made itself."""

    @staticmethod
    def forward(x: torch.Tensor, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
        y = x * factor
        return y.mul_(2), (x > 0).long()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raise AssertionError("nothing is kept for its own gradient")

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise AssertionError("its own gradient was used")


class TestCustomFunctions:
    def test_what_they_are_made_of_is_followed(self) -> None:
        def written(x: torch.Tensor) -> torch.Tensor:
            return (x**3 * 6).sum((2, 3))

        def custom(x: torch.Tensor) -> torch.Tensor:
            scaled, positive = Scaled.apply(Cube.apply(x), 3.0)
            assert positive.dtype == torch.long
            return scaled.sum((2, 3))

        torch.testing.assert_close(InputCAV(custom).attribute(X, 1), InputCAV(written).attribute(X, 1))
        assert InputCAV(custom).attribute(X, 1, return_convergence_delta=True)[1].abs().max() < 1e-12

    @pytest.mark.parametrize("named", [False, True], ids=["silent", "called a constant"])
    def test_one_that_hides_an_output_is_refused_unless_it_is_called_a_constant(self, named: bool) -> None:
        class Hiding(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                with torch.no_grad():
                    hidden = x.sin()
                if named:
                    ctx.mark_non_differentiable(hidden)
                return hidden, x * 2

        def model(x: torch.Tensor) -> torch.Tensor:
            return sum(Hiding.apply(x)).sum((2, 3))

        if named:
            _, delta = InputCAV(model).attribute(X, 1, return_convergence_delta=True)
            assert delta.abs().max() < 1e-12
        else:
            with pytest.raises(UnsupportedOperationError, match=r"Hiding, a custom autograd\.Function, computes in a"):
                InputCAV(model).attribute(X, 1)

    def test_they_are_applied_normally_after_the_attribution(self) -> None:
        before = torch.autograd.Function.__dict__["apply"]
        with pytest.raises(UnsupportedOperationError):
            InputCAV(lambda x: torch.special.i0(Cube.apply(x)).sum((1, 2, 3))).attribute(X)
        assert torch.autograd.Function.__dict__["apply"] is before
        cubes = Cube.apply(X.clone().requires_grad_())
        assert cubes.grad_fn.name() == "CubeBackward"

    def test_other_threads_apply_theirs_meanwhile(self) -> None:
        met, applied = threading.Barrier(2, timeout=30), []

        def model(x: torch.Tensor) -> torch.Tensor:
            met.wait()
            y = Cube.apply(x)
            met.wait()
            return y.sum((2, 3))

        def elsewhere() -> None:
            met.wait()
            cubes = Cube.apply(X.clone().requires_grad_())
            applied.append(cubes.grad_fn.name())
            met.wait()

        thread = threading.Thread(target=elsewhere)
        thread.start()
        InputCAV(model).attribute(X, 1)
        thread.join()
        assert applied == ["CubeBackward"]


class TestGraphs:
    def test_a_symbolically_traced_model_is_its_original(self) -> None:
        check(torch.fx.symbolic_trace(net()))

    @pytest.mark.parametrize("lowered", [False, True], ids=["exported", "lowered to core operations"])
    def test_an_exported_model_has_the_same_map(self, lowered: bool) -> None:
        program = torch.export.export(net(), (X,))
        if lowered:
            kept = "layer_norm gelu scaled_dot_product_attention".split()
            table = torch.export.default_decompositions()
            for operation in list(table):
                if any(name in str(operation) for name in kept):
                    table.pop(operation)
            program = program.run_decompositions(table)
            assert "aten.convolution" in str(program.graph)
        found, delta = InputCAV(program.module()).attribute(X, 2, return_convergence_delta=True)
        torch.testing.assert_close(found, InputCAV(net()).attribute(X, 2), rtol=1e-9, atol=1e-12)
        assert delta.abs().max() < 1e-12

    def test_an_exported_model_that_keeps_its_modules_has_the_same_maps(self) -> None:
        """Its graphs have lists of a class of their own."""
        model = nn.Sequential()
        model.add_module("branches", Apply(lambda x: torch.cat([x, torch.sin(x)], 1)))
        model.add_module("head", nn.Linear(8, 3))
        x = samples()
        # The strict export of torch 2.6 gives the modules other names.
        unflattened = torch.export.unflatten(torch.export.export(model, (x,), strict=False))
        assert torch.equal(InputCAV(unflattened).attribute(x, 1), InputCAV(model).attribute(x, 1))
        found = LayerCAV(unflattened, "branches").attribute(x, 1)
        assert torch.equal(found, LayerCAV(model, "branches").attribute(x, 1))
