"""Nothing is left on the model, its inputs or the process, whether an attribution returns or raises."""

from __future__ import annotations

import gc
import resource
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, NeuronCAV, rules

Attribution = Callable[[nn.Module, torch.Tensor], Any]
Function = Callable[[torch.Tensor], torch.Tensor]
SHAPE = (2, 3, 12, 12)


pytestmark = pytest.mark.usefixtures("one_thread")


# Networks -------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block whose ReLUs and addition write in place."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride, padding=1)
        self.norm = nn.BatchNorm2d(2 * channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(channels, 2 * channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        y += self.shortcut(x)
        return self.relu(y)


class ResidualNet(nn.Module):
    """A small ResNet, some of whose (harmless) modules are in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.block1 = Block(4, 1)
        self.block2 = Block(8, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.flatten(self.pool(self.block2(self.block1(self.stem(x))))))


class Noisy(nn.Module):
    """Consumes random numbers in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x + torch.rand_like(x)))
        return self.head(h + torch.rand(6, dtype=h.dtype))


class Between(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 10 * 10, 3)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.function(self.first(x)).flatten(1))


def residual_net() -> ResidualNet:
    """The net in a state that is worth restoring: mixed modes and flags, gradients, statistics of its own."""
    torch.manual_seed(0)
    net = ResidualNet()
    with torch.no_grad():
        net(torch.randn(8, *SHAPE[1:]))
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    net.stem[0].weight.requires_grad_(False)
    net.head.weight.grad = torch.randn_like(net.head.weight)
    return net


def picture(seed: int = 1) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


ATTRIBUTIONS: dict[str, Attribution] = {
    "layer": lambda net, x: LayerCAV(net, "block1").attribute(x, 1),
    "layer-input": lambda net, x: LayerCAV(net, "block2.norm").attribute(x, 1, attribute_to_layer_input=True),
    "layers-with-delta": lambda net, x: LayerCAV(net, ["stem.0", "block1.relu", "flatten"]).attribute(
        x, [1, 2], return_convergence_delta=True
    ),
    "targets": lambda net, x: LayerCAV(net, ["block1", "block2"]).attribute_targets(x, [0, 3]),
    "inputs": lambda net, x: InputCAV(net).attribute(x, 1),
    "inputs-with-delta": lambda net, x: InputCAV(net).attribute(x, 1, return_convergence_delta=True),
    "neuron": lambda net, x: NeuronCAV(net, "head").attribute(x, 1),
    "neuron-input": lambda net, x: NeuronCAV(net, "head").attribute(
        x, 1, attribute_to_neuron_input=True, return_convergence_delta=True
    ),
}
every_attribution = pytest.mark.parametrize("attribution", list(ATTRIBUTIONS.values()), ids=list(ATTRIBUTIONS))


def tensors_of(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in tensors_of(part)]


# What a trace would be ------------------------------------------------------------------------------------------


def bits_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def state_of_tensor(tensor: torch.Tensor) -> dict[str, Any]:
    grad = tensor.grad if tensor.is_leaf else None
    return {
        "tensor": id(tensor),
        "memory": tensor.data_ptr(),
        "bits": bits_of(tensor),
        "writes": tensor._version,
        "requires_grad": tensor.requires_grad,
        "grad_fn": tensor.grad_fn,
        "grad": None if grad is None else (id(grad), bits_of(grad)),
        "hooks": dict(tensor._backward_hooks or {}),
        "attributes": dict(vars(tensor)),
    }


def state_of(model: nn.Module, *inputs: torch.Tensor) -> dict[str, Any]:
    """Everything on a model, its inputs and the process that an attribution could leave changed."""
    registry = vars(torch.nn.modules.module)
    state: dict[str, Any] = {
        "global hooks": {
            name: list(value.items()) if isinstance(value, dict) else value
            for name, value in registry.items()
            if name.startswith("_global_") and not callable(value)
        },
        "random": bits_of(torch.get_rng_state()),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "function modes": torch._C._len_torch_function_stack(),
        "inputs": [state_of_tensor(tensor) for tensor in inputs],
        "state_dict": {key: bits_of(value) for key, value in model.state_dict().items()},
    }
    for name, module in model.named_modules():
        own = vars(module)
        state[f"module {name!r}"] = {
            "class": type(module),
            "training": module.training,
            "attributes": {key: id(value) for key, value in own.items()},
            "hooks": {key: list(value.items()) for key, value in own.items() if "hooks" in key and value is not None},
            "tensors": {key: state_of_tensor(value) for key, value in module.named_parameters(recurse=False)}
            | {key: state_of_tensor(value) for key, value in module.named_buffers(recurse=False)},
        }
    return state


@contextmanager
def left_as_it_was(model: nn.Module, *inputs: torch.Tensor) -> Iterator[None]:
    before = state_of(model, *inputs)
    yield
    assert state_of(model, *inputs) == before


TRACES: dict[str, Callable[[ResidualNet], Any]] = {
    "hook": lambda net: net.block1.register_forward_hook(print),
    "hook-with-kwargs": lambda net: net.block1.register_forward_pre_hook(print, with_kwargs=True),
    "backward-hook": lambda net: net.block1.register_full_backward_hook(print),
    "state-dict-hook": lambda net: net.block1.register_state_dict_post_hook(lambda *_: None),
    "parameter-hook": lambda net: net.head.bias.register_hook(print),
    "requires-grad": lambda net: net.head.bias.requires_grad_(False),
    "grad": lambda net: net.head.weight.grad.add_(1),
    "new-grad": lambda net: setattr(net.head.bias, "grad", torch.zeros_like(net.head.bias)),
    "mode": lambda net: net.pool.eval(),
    "statistics": lambda net: net.stem[1].num_batches_tracked.add_(1),
    "same-values-written": lambda net: net.stem[1].running_mean.mul_(1),
    "mark": lambda net: setattr(net.head.weight, "_mark", 1),
    "attribute": lambda net: setattr(net.block1, "_mark", 1),
    "replaced-module": lambda net: setattr(net, "pool", nn.AdaptiveAvgPool2d(1)),
    "replaced-parameter": lambda net: setattr(net.head, "bias", nn.Parameter(net.head.bias.detach())),
    "random-numbers": lambda _: torch.rand(1),
}


@pytest.mark.parametrize("leave", list(TRACES.values()), ids=list(TRACES))
def test_a_trace_would_be_seen(leave: Callable[[ResidualNet], Any]) -> None:
    net = residual_net()
    before = state_of(net)
    leave(net)
    assert state_of(net) != before


def test_a_trace_on_the_process_would_be_seen() -> None:
    net = residual_net()
    before = state_of(net)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    seen = state_of(net) != before
    handle.remove()
    assert seen
    with torch.no_grad():
        assert state_of(net) != before
    with torch.overrides.BaseTorchFunctionMode():
        assert state_of(net) != before
    assert state_of(net) == before


# No trace on the model -------------------------------------------------------------------------------------------


@every_attribution
def test_an_attribution_leaves_nothing(attribution: Attribution) -> None:
    net, x = residual_net(), picture()
    with left_as_it_was(net, x):
        results = tensors_of(attribution(net, x))
    assert results
    for result in results:
        assert not result.requires_grad
        assert result.isfinite().all()


class InjectedError(Exception):
    """Nobody else raises or expects this."""


def inject(monkeypatch: pytest.MonkeyPatch, module: nn.Module, error: BaseException) -> None:
    """Let a module raise once its forward pass is done."""
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        raise error

    monkeypatch.setattr(module, "forward", forward)


def ways_through(name: str) -> list[Attribution]:
    """The attributions whose forward pass is not over before a module is done."""
    too_early = {"": ("neuron", "neuron-input"), "head": ("neuron-input",)}.get(name, ())
    return [attribution for way, attribution in ATTRIBUTIONS.items() if way not in too_early]


@pytest.mark.parametrize("kind", [InjectedError, KeyboardInterrupt])
@pytest.mark.parametrize("name", [name for name, _ in ResidualNet().named_modules()], ids=lambda name: name or "model")
def test_a_module_that_raises_leaves_nothing(
    name: str, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = residual_net(), picture()
    expected = LayerCAV(net, "flatten").attribute(x, 1)
    error = kind("on purpose")
    with monkeypatch.context() as patched:
        inject(patched, net.get_submodule(name), error)
        for attribution in ways_through(name):
            with left_as_it_was(net, x):
                with pytest.raises(kind) as caught:
                    attribution(net, x)
                assert caught.value is error
    assert torch.equal(LayerCAV(net, "flatten").attribute(x, 1), expected)


def test_a_hook_or_rule_that_raises_leaves_nothing() -> None:
    net, x = residual_net(), picture()
    error = InjectedError("on purpose")

    def fail(*_: Any) -> Any:
        raise error

    with left_as_it_was(net, x):
        with pytest.raises(InjectedError) as caught:
            LayerCAV(net, "stem", rules={F.relu: fail}).attribute(x, 1)
        assert caught.value is error
    for register in (net.block2.register_forward_hook, net.block2.register_forward_pre_hook):
        handle = register(fail)
        for attribution in ATTRIBUTIONS.values():
            with left_as_it_was(net, x):
                with pytest.raises(InjectedError) as caught:
                    attribution(net, x)
                assert caught.value is error
        handle.remove()


def test_a_refusal_leaves_nothing() -> None:
    net, x = residual_net(), picture()
    net.block2.norm.train()
    for attribution in ATTRIBUTIONS.values():
        with left_as_it_was(net, x), pytest.raises(RuntimeError, match=r"call model\.eval"):
            attribution(net, x)
    net.block2.norm.eval()
    with left_as_it_was(net, x), pytest.raises(ValueError, match="out of range"):
        LayerCAV(net, ["stem", "block1"]).attribute_targets(x, [0, 99])


# Hooks of the user -----------------------------------------------------------------------------------------------


class Recorder:
    """Hooks of every kind, and what they saw, in order."""

    def __init__(self, net: nn.Module) -> None:
        self.seen: list[tuple[str, str, list[bytes]]] = []
        everywhere = torch.nn.modules.module
        self.handles = [
            everywhere.register_module_forward_pre_hook(self.note("everywhere before")),
            everywhere.register_module_forward_hook(self.note("everywhere after")),
        ]
        for module in net.modules():
            self.handles += [
                module.register_forward_pre_hook(self.note("before")),
                module.register_forward_pre_hook(self.note("first of all"), prepend=True),
                module.register_forward_pre_hook(self.note("with kwargs before"), with_kwargs=True),
                module.register_forward_hook(self.note("after")),
                module.register_forward_hook(self.note("with kwargs after"), with_kwargs=True),
                module.register_forward_hook(self.note("always"), always_call=True),
            ]
        self.names = {module: name for name, module in net.named_modules()}

    def note(self, kind: str) -> Callable[..., None]:
        def hook(module: nn.Module, *values: Any) -> None:
            tensors = tensors_of([value for value in values if not isinstance(value, dict)])
            self.seen.append((self.names[module], kind, [bits_of(tensor) for tensor in tensors]))

        return hook

    def taken(self) -> list[tuple[str, str, list[bytes]]]:
        seen, self.seen = self.seen, []
        return seen


@every_attribution
def test_hooks_of_the_user_run_in_order_and_see_what_they_saw_before(
    attribution: Attribution, request: pytest.FixtureRequest
) -> None:
    net, x = residual_net(), picture()
    without = tensors_of(attribution(net, x))
    recorder = Recorder(net)
    try:
        with torch.no_grad():
            net(x)
        expected = recorder.taken()
        with left_as_it_was(net, x):
            found = tensors_of(attribution(net, x))
        seen = recorder.taken()
    finally:
        for handle in recorder.handles:
            handle.remove()
    if request.node.callspec.id.startswith("neuron"):  # the pass ends at the layer
        assert {name for name, _, _ in seen} == set(recorder.names.values())
        expected = expected[: len(seen)]
    assert seen == expected
    for one, other in zip(found, without, strict=True):
        assert torch.equal(one, other)


class Affine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 3 - 1


def test_a_hook_of_the_user_that_changes_a_value_is_part_of_the_model() -> None:
    net, bare, x = residual_net().double(), residual_net().double(), picture().double()
    net.block1.register_forward_hook(lambda module, args, output: output * 3 - 1)
    net.head.register_forward_pre_hook(lambda module, args: (args[0].tanh(),))
    before, after = [bare.stem, bare.block1], [bare.block2, bare.pool, bare.flatten]
    twin = nn.Sequential(*before, Affine(), *after, nn.Tanh(), bare.head)
    for name, place in (("block1", "2"), ("flatten", "5"), ("stem", "0")):
        found, expected = LayerCAV(net, name).attribute(x, 1), LayerCAV(twin, place).attribute(x, 1)
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(InputCAV(net).attribute(x, 1), InputCAV(twin).attribute(x, 1))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_backward_hooks_of_the_user_stay_and_do_not_change_the_map() -> None:
    net, x = residual_net(), picture()
    expected = LayerCAV(net, ["stem.0", "block1.conv", "head"]).attribute(x, 1)
    for module in (net.block1.conv, net.pool, net.head):  # torch refuses them where an output is written over
        module.register_full_backward_hook(lambda *_: None)
        module.register_full_backward_pre_hook(lambda *_: None)
    with left_as_it_was(net, x):
        found = LayerCAV(net, ["stem.0", "block1.conv", "head"]).attribute(x, 1)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


# Random numbers, grad mode ---------------------------------------------------------------------------------------


def test_a_model_that_draws_random_numbers_does_not_advance_them() -> None:
    torch.manual_seed(0)
    net, x = Noisy().eval(), torch.randn(3, 4)
    before = state_of(net)["random"]
    net(x)
    assert state_of(net)["random"] != before
    attributions: list[Callable[[], Any]] = [
        lambda: LayerCAV(net, "first").attribute(x, 1, return_convergence_delta=True),
        lambda: InputCAV(net).attribute(x, 1, return_convergence_delta=True),
        lambda: NeuronCAV(net, "first").attribute(x, 1, return_convergence_delta=True),
    ]
    for attribution in attributions:
        with left_as_it_was(net, x):
            first = tensors_of(attribution())
        for one, other in zip(first, tensors_of(attribution()), strict=True):
            assert torch.equal(one, other)


def test_a_model_that_draws_random_numbers_and_raises_does_not_advance_them(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Noisy().eval(), torch.randn(3, 4)
    inject(monkeypatch, net.head, InjectedError())
    with left_as_it_was(net, x), pytest.raises(InjectedError):
        LayerCAV(net, "first").attribute(x, 1)


@every_attribution
@pytest.mark.parametrize("enabled", [False, True], ids=["no_grad", "enable_grad"])
def test_grad_mode_does_not_matter_and_is_restored(attribution: Attribution, enabled: bool) -> None:
    net, x = residual_net(), picture()
    expected = tensors_of(attribution(net, x))
    with torch.set_grad_enabled(enabled), left_as_it_was(net, x):
        found = tensors_of(attribution(net, x))
        assert torch.is_grad_enabled() is enabled
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("output", ["(N,)", "(N, 1)"])
def test_a_model_of_one_score_works_without_grad_mode(output: str) -> None:
    def score(x: torch.Tensor) -> torch.Tensor:
        return x.sum(1) if output == "(N,)" else x.sum(1, keepdim=True)

    with torch.no_grad():
        ratios = InputCAV(score).attribute(torch.tensor([[1.0, 3.0]]))
    torch.testing.assert_close(ratios, torch.tensor([[0.25, 0.75]]))


# Inputs ----------------------------------------------------------------------------------------------------------


def leaf_with_grad() -> torch.Tensor:
    x = picture().requires_grad_()
    x.grad = torch.ones_like(x)
    return x


def part_of_a_graph() -> torch.Tensor:
    return picture().requires_grad_() * 2


def view_of_a_leaf() -> torch.Tensor:
    return torch.cat([picture(), picture()]).requires_grad_()[1:3]


def parameter() -> torch.Tensor:
    return nn.Parameter(picture())


def with_attribute_and_hook() -> torch.Tensor:
    x = picture().requires_grad_()
    x.label = "mine"
    x.register_hook(lambda grad: grad * 100)
    return x


INPUTS = [picture, leaf_with_grad, part_of_a_graph, view_of_a_leaf, parameter, with_attribute_and_hook]


@every_attribution
@pytest.mark.parametrize("make", INPUTS)
def test_the_input_is_left_as_it_was(attribution: Attribution, make: Callable[[], torch.Tensor]) -> None:
    net, x = residual_net(), make()
    expected = tensors_of(attribution(net, x.detach().clone()))
    shared = [x] if x._base is None else [x, x._base]
    with left_as_it_was(net, *shared):
        found = tensors_of(attribution(net, x))
    for one, other in zip(found, expected, strict=True):
        assert not one.requires_grad
        torch.testing.assert_close(one, other)


def test_further_arguments_are_left_as_they_were() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            return self.linear(x * scale[:, 1:]) + shift.view(-1)[:3]

    net = Conditioned()
    x, scale, shift = torch.randn(2, 4), torch.randn(1, 5, requires_grad=True), torch.randn(3, 3)
    with left_as_it_was(net, x, scale, shift):
        _, delta = InputCAV(net).attribute(x, 0, (scale, shift), return_convergence_delta=True)
        LayerCAV(net, "linear").attribute(x, 0, (scale, shift), attribute_to_layer_input=True)
    assert delta.abs().max() < 1e-4


# Memory ----------------------------------------------------------------------------------------------------------


def watch_activations(net: nn.Module) -> list[weakref.ref[Any]]:
    """References to the memory of every module's output, from now on."""
    watched: list[weakref.ref[Any]] = []
    for module in net.modules():
        module.register_forward_hook(lambda _, args, output: watched.append(weakref.ref(output.untyped_storage())))
    return watched


def alive(watched: list[weakref.ref[Any]]) -> int:
    return sum(reference() is not None for reference in watched)


@every_attribution
def test_no_activation_outlives_the_call(attribution: Attribution) -> None:
    net, x = residual_net(), picture()
    watched = watch_activations(net)
    result = attribution(net, x)
    gc.collect()
    assert len(watched) > 15
    assert alive(watched) == 0
    del result
    gc.collect()
    assert alive(watched) == 0


EACH_KIND_OF_RULE: dict[str, Any] = {
    **{name: name for name in ("paper", "gamma", "epsilon_plus_flat", "alpha2_beta1", "pinpoint")},
    "as one": {nn.ReLU: rules.PassThroughRule()},
}


@pytest.mark.parametrize("chosen", EACH_KIND_OF_RULE.values(), ids=EACH_KIND_OF_RULE)
def test_no_cycle_waits_for_the_garbage_collector(chosen: Any) -> None:
    """A cycle through the graph would keep every activation of the last few calls in memory."""
    net, x = residual_net(), picture()
    cav = LayerCAV(net, [net.stem, net.pool], rules=chosen)
    cav.attribute(x, 1)
    watched = watch_activations(net)
    gc.collect()
    gc.disable()
    try:
        cav.attribute(x, 1, return_convergence_delta=True)
        assert len(watched) > 15
        assert alive(watched) == 0
    finally:
        gc.enable()


def test_two_hundred_calls_do_not_grow_memory() -> None:
    """Of Python's objects nor of the process: what one call needs, the next finds free."""
    net, x = residual_net(), picture()
    calls = [
        lambda: LayerCAV(net, ["stem", "pool"], rules="gamma").attribute(x, 1, return_convergence_delta=True),
        lambda: LayerCAV(net, "stem", normalize=None).attribute_targets(x, [0, 1, 2]),
        lambda: InputCAV(net, rules="pinpoint").attribute(x, 1),
        lambda: NeuronCAV(net, "block1", normalize=None).attribute(x, (0, 1, 1)),
    ]

    def repeat(times: int) -> None:
        for _ in range(times // len(calls)):
            for call in calls:
                call()

    def held() -> tuple[int, int]:
        gc.collect()
        return len(gc.get_objects()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    repeat(60)
    objects, peak = held()
    repeat(200)
    more_objects, higher_peak = held()
    assert more_objects - objects < 20
    assert higher_peak - peak < 2_000, "kilobytes (bytes on macOS): less than one activation a call"


def test_no_activation_outlives_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = residual_net(), picture()
    watched = watch_activations(net)
    inject(monkeypatch, net.pool, InjectedError())
    for attribution in ATTRIBUTIONS.values():
        with pytest.raises(InjectedError) as caught:
            attribution(net, x)
        caught.value.with_traceback(None)
        del caught
        gc.collect()
        assert len(watched) > 10
        assert alive(watched) == 0
        watched.clear()


def test_an_activation_that_the_user_keeps_is_seen_to_be_alive() -> None:
    net, x = residual_net(), picture()
    kept: list[torch.Tensor] = []
    net.block1.register_forward_hook(lambda module, args, output: kept.append(output))
    watched = watch_activations(net)
    LayerCAV(net, "stem").attribute(x, 1)
    assert alive(watched) > 0
    kept.clear()
    gc.collect()
    assert alive(watched) == 0


def test_nothing_before_the_first_requested_layer_builds_a_graph() -> None:
    net, x = residual_net(), picture()
    with_graph: dict[str, bool] = {}
    for name, module in net.named_modules():
        module.register_forward_hook(
            lambda _, args, output, name=name: with_graph.__setitem__(name, output.requires_grad)
        )
    LayerCAV(net, ["head", "block2"]).attribute(x.requires_grad_(), 1)
    # The layer's own hook of the user comes before the tap.
    assert {name for name, grows in with_graph.items() if grows} == {"pool", "flatten", "head", ""}
    assert len(with_graph) == len(list(net.named_modules()))


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_fifty_calls_leave_no_more_tensors_than_one() -> None:
    net, x = residual_net(), picture()
    ways = [ATTRIBUTIONS[way] for way in ("layers-with-delta", "targets", "inputs", "neuron-input")]

    def call_all() -> None:
        for attribution in ways:
            attribution(net, x)
        with pytest.raises(ValueError, match="out of range"):
            LayerCAV(net, "block1").attribute(x, 99)

    call_all()
    before = live_tensors()
    for _ in range(50):
        call_all()
    assert live_tensors() == before
    held = [torch.zeros(1)]
    assert live_tensors() == before + len(held)


# Writing in place ------------------------------------------------------------------------------------------------

SCALES = torch.linspace(0.5, 2, 10, dtype=torch.float64)
FIXED = torch.linspace(-1, 1, 10, dtype=torch.float64)


def set_number(y: torch.Tensor) -> torch.Tensor:
    y[:, 0] = 0.5
    return y


def set_own_part(y: torch.Tensor) -> torch.Tensor:
    y[:, 0] = 2 * y[:, 1]
    return y


def set_under_mask(y: torch.Tensor) -> torch.Tensor:
    y[y < 0] = 0.25
    return y


def write_into_a_view(y: torch.Tensor) -> torch.Tensor:
    y[:, 0].mul_(3)
    return y


def write_into_a_flat_view(y: torch.Tensor) -> torch.Tensor:
    y.view(-1).relu_()
    return y


def iadd_branch(y: torch.Tensor) -> torch.Tensor:
    y += y.sigmoid()
    return y


def imul_gate(y: torch.Tensor) -> torch.Tensor:
    y *= y.sigmoid()
    return y


def first_channel(first: Function) -> Function:
    """The function that replaces the first channel."""
    return lambda y: torch.cat([first(y), y[:, 1:]], 1)


IN_PLACE: dict[str, tuple[Function, Function]] = {
    "relu_": (torch.relu_, torch.relu),
    "relu-inplace": (nn.ReLU(inplace=True), nn.ReLU()),
    "gelu-then-relu_": (lambda y: F.gelu(y).relu_(), lambda y: F.gelu(y).relu()),
    "silu-inplace": (nn.SiLU(inplace=True), nn.SiLU()),
    "relu6-inplace": (nn.ReLU6(inplace=True), nn.ReLU6()),
    "elu-inplace": (nn.ELU(inplace=True), nn.ELU()),
    "hardswish-inplace": (nn.Hardswish(inplace=True), nn.Hardswish()),
    "tanh_": (torch.tanh_, torch.tanh),
    "sigmoid_": (torch.sigmoid_, torch.sigmoid),
    "clamp_": (lambda y: y.clamp_(-0.1, 0.2), lambda y: y.clamp(-0.1, 0.2)),
    "add_-number": (lambda y: y.add_(0.5), lambda y: y + 0.5),
    "add_-tensor": (lambda y: y.add_(FIXED), lambda y: y + FIXED),
    "iadd-branch": (iadd_branch, lambda y: y + y.sigmoid()),
    "mul_-tensor": (lambda y: y.mul_(SCALES), lambda y: y * SCALES),
    "mul_-itself": (lambda y: y.mul_(y), lambda y: y * y),
    "imul-gate": (imul_gate, lambda y: y * y.sigmoid()),
    "div_": (lambda y: y.div_(3), lambda y: y / 3),
    "pow_": (lambda y: y.pow_(2), lambda y: y.pow(2)),
    "copy_": (lambda y: y.copy_(2 * y), lambda y: 2 * y),
    "masked_fill_": (lambda y: y.masked_fill_(y < 0, 0.25), lambda y: y.masked_fill(y < 0, 0.25)),
    "setitem-number": (set_number, first_channel(lambda y: torch.full_like(y[:, :1], 0.5))),
    "setitem-own-part": (set_own_part, first_channel(lambda y: 2 * y[:, 1:2])),
    "setitem-mask": (set_under_mask, lambda y: y.masked_fill(y < 0, 0.25)),
    "view": (write_into_a_view, first_channel(lambda y: 3 * y[:, :1])),
    "flat-view": (write_into_a_flat_view, torch.relu),
}


@pytest.mark.parametrize(("in_place", "twin"), list(IN_PLACE.values()), ids=list(IN_PLACE))
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_writing_over_a_requested_output_gives_the_map_of_the_twin(
    in_place: Function, twin: Function, delta: bool
) -> None:
    torch.manual_seed(0)
    net = Between(in_place).double().eval()
    other = Between(twin).double().eval()
    other.load_state_dict(net.state_dict())
    x = picture().double()
    untouched = x.clone()
    for attribution in (LayerCAV, InputCAV):
        one, two = (
            attribution(model, *(["first"] if attribution is LayerCAV else []), normalize=None).attribute(
                x, 1, return_convergence_delta=delta
            )
            for model in (net, other)
        )
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    assert torch.equal(x, untouched)


@pytest.mark.parametrize(("in_place", "twin"), list(IN_PLACE.values()), ids=list(IN_PLACE))
def test_writing_over_the_input_gives_the_map_of_the_twin(in_place: Function, twin: Function) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 10 * 10, 3)).double()
    x = torch.randn(2, 3, 10, 10, dtype=torch.float64)
    one, two = (
        InputCAV(lambda x, function=function: head(function(x))).attribute(x.clone(), 1, return_convergence_delta=True)
        for function in (in_place, twin)
    )
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_a_layer_that_writes_over_its_own_input_gives_the_map_at_its_input() -> None:
    net = residual_net().double()
    twin = residual_net().double()
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    names = ["stem.2", "block1.relu", "block2.relu"]
    x = picture().double()
    for at_input in (True, False):
        found, expected = (
            LayerCAV(model, names).attribute(x, 1, attribute_to_layer_input=at_input) for model in (net, twin)
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
        assert (expected[0] < 0).any() or not at_input


# Threads ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def _restless() -> Iterator[None]:
    """Lets threads take turns much more often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_restless")
def test_two_threads_on_one_model_get_their_own_maps() -> None:
    net = residual_net()
    names = ["stem.0", "block1", "block1.relu", "block2.norm", "flatten"]
    jobs = [
        [([names[(k + thread) % 5], names[(2 * k + thread) % 5]], (k + 2 * thread) % 5, k) for k in range(20)]
        for thread in range(2)
    ]

    def do(job: tuple[list[str], int, int]) -> list[torch.Tensor]:
        layers, target, seed = job
        maps, deltas = LayerCAV(net, layers).attribute(picture(seed), target, return_convergence_delta=True)
        return [*maps, *deltas, InputCAV(net).attribute(picture(seed), target)]

    expected = [[do(job) for job in own] for own in jobs]
    start = threading.Barrier(2)

    def work(own: list[tuple[list[str], int, int]]) -> list[list[torch.Tensor]]:
        start.wait(30)
        return [do(job) for job in own]

    with left_as_it_was(net), ThreadPoolExecutor(2) as threads:
        found = list(threads.map(work, jobs))
    for own, right in zip(found, expected, strict=True):
        for results, rights in zip(own, right, strict=True):
            for one, other in zip(results, rights, strict=True):
                torch.testing.assert_close(one, other)


def in_another_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function).result(60)


@every_attribution
def test_another_thread_meanwhile_uses_and_trains_the_model_as_ever(attribution: Attribution) -> None:
    net, x, other = residual_net(), picture(), picture(2)
    trained = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))

    def use() -> list[torch.Tensor]:
        output = net(other)
        gradients = torch.autograd.grad(output.sum(), net.head.bias)
        return [output, *gradients]

    expected = use()
    right = tensors_of(attribution(net, x))
    seen: list[list[torch.Tensor]] = []

    def meanwhile(module: nn.Module, args: Any, output: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            seen.append(in_another_thread(use))
            assert in_another_thread(lambda: trained(torch.ones(2, 3)).requires_grad)

    handle = net.block1.register_forward_hook(meanwhile)
    found = tensors_of(attribution(net, x))
    handle.remove()
    assert len(seen) == 1
    for one, two in zip(seen[0] + found, expected + right, strict=True):
        assert torch.equal(one, two)
        assert not vars(one)
