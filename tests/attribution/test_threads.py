"""Several threads that use one model at the same time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, rules
from tests.support.attributions import every_attribution
from tests.support.small_networks import picture, residual_net
from tests.support.tensors import assert_same, tensors_of
from tests.support.traces import left_as_it_was

Attribution = Callable[[nn.Module, torch.Tensor], Any]


# Threads -------------------------------------------------------------------------------------------------------------


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
def test_another_thread_uses_and_trains_the_model_during_an_attribution(attribution: Attribution) -> None:
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


# Threads, processes, random numbers ----------------------------------------------------------------------------------


CHOICES: list[Any] = [
    None,
    "gamma",
    "epsilon",
    "epsilon_plus",
    "alpha2_beta1",
    {nn.ReLU: rules.PassThroughRule()},
    {"block1.*": rules.GammaRule(0.3)},
    {F.relu: rules.pass_through},
]


@pytest.mark.parametrize(("threads", "calls"), [(2, 30), pytest.param(8, 50, marks=pytest.mark.slow)], ids=str)
def test_threads_on_one_model(threads: int, calls: int) -> None:
    net = residual_net()
    layers = ["stem.0", "block1", "block1.relu", "block2.norm", "block2.relu", "flatten"]
    pictures = [picture(seed) for seed in range(4)]

    def do(job: tuple[Any, ...]) -> list[torch.Tensor]:
        chosen, x, target, number = job
        options = {"rules": CHOICES[number], "normalize": None}
        explain = LayerCAV(net, chosen, **options) if chosen else InputCAV(net, **options)
        return tensors_of(explain.attribute(pictures[x], target, return_convergence_delta=True))

    def job_of(thread: int, call: int) -> tuple[Any, ...]:
        """Each thread has rules of its own, and other layers, pictures and targets from call to call."""
        number = (7 * call + 3 * thread) % 12
        chosen = (layers[number % 6], layers[(5 * number + thread) % 6])[: 1 + number % 2] if number % 4 != 3 else ()
        return chosen, number % 4, (number + thread) % 5, thread % len(CHOICES)

    jobs = [[job_of(thread, call) for call in range(calls)] for thread in range(threads)]
    right = {job: do(job) for own in jobs for job in own}
    expected = [[right[job] for job in own] for own in jobs]
    start = threading.Barrier(threads)

    def work(thread: int) -> list[list[torch.Tensor]]:
        start.wait(60)
        return [do(job) for job in jobs[thread]]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with left_as_it_was(net), ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(work, range(threads)))
    finally:
        sys.setswitchinterval(before)
    assert_same(found, expected, 1e-5)
    distinct = {tuple(tensor.numpy().tobytes() for tensor in tensors) for tensors in right.values()}
    assert len(distinct) > 10 * threads, "maps that were swapped would not be seen"
