"""What only a GPU has: streams, a second device, memory and random numbers of its own, inputs on the wrong side."""

from __future__ import annotations

import copy
import gc
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV
from captum_cav.errors import InputError, OptionError
from tests.gpu.networks import case, distance, explain, on, reference


def two_devices() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"{torch.cuda.device_count()} CUDA device: two are needed")


class Split(nn.Module):
    """A network whose halves lie on two devices."""

    def __init__(self, model: nn.Module, first: torch.device, second: torch.device) -> None:
        super().__init__()
        self.features = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool, model.layer1).to(first)
        self.rest = nn.Sequential(model.layer2, model.layer3, model.layer4, model.avgpool, nn.Flatten(), model.fc)
        self.rest.to(second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(self.features(x).to(next(self.rest.parameters()).device))


def check_split(first: torch.device, second: torch.device) -> None:
    """Contributions cross from one device to the other and back."""
    model, inputs, _ = case("resnet18")
    split = Split(copy.deepcopy(model), first, second)
    maps, deltas = LayerCAV(split, ["features.2", "rest.2"], normalize=None).attribute(
        inputs.to(first), 0, return_convergence_delta=True
    )
    assert [part.device for part in maps] == [first, second]
    expected = reference("resnet18")
    assert distance(maps[0].cpu(), expected.maps[0]) < 1e-9
    assert distance(maps[1].cpu(), expected.maps[2]) < 1e-9
    for mine, its in zip(deltas, (expected.deltas[0], expected.deltas[2]), strict=True):
        assert float((mine.cpu() - its).abs().max()) < 1e-8


def test_a_network_on_two_devices(cuda: torch.device) -> None:
    two_devices()
    check_split(torch.device("cuda:0"), torch.device("cuda:1"))


def test_a_network_on_host_and_device(device: torch.device) -> None:
    here = torch.empty(0, device=device).device  # with its index
    check_split(torch.device("cpu"), here)
    check_split(here, torch.device("cpu"))


def test_a_device_that_is_not_the_current_one(cuda: torch.device) -> None:
    two_devices()
    found = explain(on("functional", torch.device("cuda:1")))
    assert distance(found.maps[0], reference("functional").maps[0]) < 1e-9


@pytest.mark.parametrize("attribution", [InputCAV, lambda model: LayerCAV(model, "first")])
def test_inputs_on_the_host_and_a_model_on_the_device(attribution: object, cuda: torch.device) -> None:
    here = on("functional", cuda)
    with pytest.raises(InputError) as error:
        attribution(here.model).attribute(here.inputs.cpu(), 0)  # type: ignore[operator]
    assert str(error.value) == "inputs is on cpu and the model on cuda:0; move one with .to(device)."


def test_inputs_on_the_device_and_a_model_on_the_host(cuda: torch.device) -> None:
    model, inputs, _ = case("functional")
    with pytest.raises(InputError) as error:
        NeuronCAV(model, "second").attribute(inputs.to(cuda), (0, 0, 0))
    assert str(error.value) == "inputs is on cuda:0 and the model on cpu; move one with .to(device)."


def test_a_stream_of_the_caller(cuda: torch.device) -> None:
    here = on("resnet18", cuda)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # whatever does not wait for this stream comes before it
        late = here.inputs * 1.0
        ratios = InputCAV(here.model, normalize=None).attribute(late, 0)
    stream.synchronize()
    assert distance(ratios.cpu(), reference("resnet18").maps[-1]) < 1e-9


def test_threads_with_a_stream_each(cuda: torch.device) -> None:
    here = on("functional", cuda)
    expected = reference("functional").maps[-1]

    def one(_: int) -> float:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            ratios = InputCAV(here.model, normalize=None).attribute(here.inputs, 0)
            stream.synchronize()
            return distance(ratios.cpu(), expected)

    torch.cuda.synchronize()
    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(one, range(24))) < 1e-9


def test_random_numbers_of_the_device_are_put_back(device: torch.device) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x + torch.rand_like(x))

    model, inputs = Noisy().to(device), torch.ones(2, 4, device=device)
    torch.manual_seed(0)
    expected = torch.rand(3, device=device)
    torch.manual_seed(0)
    InputCAV(model, normalize=None).attribute(inputs, 0)
    assert torch.equal(torch.rand(3, device=device), expected)


def test_nothing_stays_allocated(cuda: torch.device) -> None:
    here = on("resnet18", cuda, torch.float32)
    cav = LayerCAV(here.model, here.layers)

    def allocated() -> int:
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    cav.attribute(here.inputs, 0, return_convergence_delta=True)  # workspaces of the libraries
    before = allocated()
    for _ in range(3):
        cav.attribute(here.inputs, 0, return_convergence_delta=True)
    gc.disable()  # reference counts alone must free it
    try:
        cav.attribute(here.inputs, 0, return_convergence_delta=True)
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() == before
    finally:
        gc.enable()
    assert allocated() == before


def test_nothing_is_recorded_before_the_layer(cuda: torch.device) -> None:
    here = on("resnet18", cuda, torch.float32)

    def peak(layer: str) -> int:
        cav = LayerCAV(here.model, layer)
        cav.attribute(here.inputs, 0)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        cav.attribute(here.inputs, 0)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    assert peak("layer4") < 0.6 * peak("relu")


def test_the_host_waits_no_more_often_for_deeper_networks(cuda: torch.device) -> None:
    def waits(depth: int) -> int:
        blocks = [block for _ in range(depth) for block in (nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8))]
        model = nn.Sequential(nn.Linear(8, 8), *blocks).to(cuda)
        cav, inputs = LayerCAV(model, "0"), torch.randn(2, 8, device=cuda)
        cav.attribute(inputs, 0)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                cav.attribute(inputs, 0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)

    assert 1 <= waits(1) == waits(12)


@pytest.mark.parametrize("device_ids", [[0], ["cuda"], [torch.device("cuda:0")]], ids=str)
def test_the_device_of_the_model_as_device_ids(device_ids: list[Any], cuda: torch.device) -> None:
    here = on("functional", torch.device("cuda:0"))
    cav = LayerCAV(here.model, here.layers, device_ids)
    assert torch.equal(cav.attribute(here.inputs, 0)[0], LayerCAV(here.model, here.layers).attribute(here.inputs, 0)[0])
    with pytest.raises(OptionError, match=r"the one device of the model \(cuda:0\)"):
        LayerCAV(here.model, here.layers, [0, 1])
