"""No memory is kept: activations, graphs and tensors are freed when an attribution ends or fails."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV, rules
from tests.support.attributions import ATTRIBUTIONS, every_attribution
from tests.support.small_networks import picture, residual_net
from tests.support.tensors import tensors_of
from tests.support.traces import InjectedError, alive, inject, left_as_it_was, watch_activations

Attribution = Callable[[nn.Module, torch.Tensor], Any]

pytestmark = pytest.mark.usefixtures("frozen_heap")


# Memory --------------------------------------------------------------------------------------------------------------


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


# Failures midway -----------------------------------------------------------------------------------------------------


def test_out_of_memory_midway(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same exception, nothing left, and the memory free for a smaller batch."""
    net, x = residual_net(), picture()
    watched = watch_activations(net)
    original = net.pool.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(x)

    monkeypatch.setattr(net.pool, "forward", forward)
    for attribution in (LayerCAV(net, ["stem.0", "block1"]), InputCAV(net)):
        with left_as_it_was(net, x):
            with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 2") as caught:
                attribution.attribute(x, 1, return_convergence_delta=True)
            assert type(caught.value) is torch.OutOfMemoryError
        caught.value.with_traceback(None)
        del caught
        gc.collect()
        assert len(watched) > 10
        assert alive(watched) == 0
        watched.clear()
        halves = [attribution.attribute(half, 1) for half in x.split(1)]
        assert all(tensor.isfinite().all() for half in halves for tensor in tensors_of(half))
