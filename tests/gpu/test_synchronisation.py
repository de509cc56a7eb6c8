"""Between the inputs' check and the results' check the host waits for nothing: it only hands out work."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from captum_cav import InputCAV, LayerCAV, NeuronCAV, presets, verify
from tests.gpu.networks import ALL_NETWORKS, Case, on
from tests.gpu.reads import check_reads, names_of
from tests.gpu.synchronisation import none_allowed

#: They take less than half a second each.
_QUICK = ("functional", "gates", "lstm", "words", "packed")
#: Networks of which every operation passes contributions on by its derivative, so that maps can be differentiated.
_DIFFERENTIABLE = ("functional", "reused", "resnet18", "googlenet", "squeezenet1_1")


@functools.cache
def here(name: str, device: torch.device, dtype: torch.dtype = torch.float64) -> Case:
    """A network on the device. On a GPU the network runs once: torch loads libraries and chooses kernels."""
    found = on(name, device, dtype)
    if device.type == "cuda":
        found.model(found.inputs)
    return found


def layers_and_inputs(case: Case, with_delta: bool, **options: Any) -> list[Any]:
    """Contributions of the layers to two targets, and those of the inputs."""
    found = [
        LayerCAV(case.model, case.layers, **options).attribute_targets(
            case.inputs, [0, 1], return_convergence_delta=with_delta
        )
    ]
    if case.inputs.is_floating_point():
        found.append(InputCAV(case.model, **options).attribute(case.inputs, 0, return_convergence_delta=with_delta))
    return found


def few_are_quick(*names: str) -> Any:
    """Networks as parameters: the small ones run with the default tests."""
    return pytest.mark.parametrize(
        "name", [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]
    )


@pytest.mark.parametrize("with_delta", [False, True], ids=["ratios", "deltas"])
@few_are_quick(*ALL_NETWORKS)
def test_the_defaults_wait_for_nothing(name: str, with_delta: bool, cuda_or_meta: torch.device) -> None:
    case = here(name, cuda_or_meta)
    check_reads(f"network {name}", cuda_or_meta, layers_and_inputs, case, with_delta)


@pytest.mark.parametrize("preset", [name for name in presets.NAMES if name != "paper"])
@pytest.mark.parametrize("name", _QUICK)
def test_presets_wait_for_nothing(name: str, preset: str, cuda_or_meta: torch.device) -> None:
    case = here(name, cuda_or_meta)
    cav = LayerCAV(case.model, case.layers, rules=preset)
    check_reads(f"network {name}", cuda_or_meta, cav.attribute, case.inputs, 0, return_convergence_delta=True)


@pytest.mark.slow
@pytest.mark.parametrize("preset", presets.NAMES)
@pytest.mark.parametrize("name", ALL_NETWORKS)
def test_all_presets_wait_for_nothing_in_all_networks(name: str, preset: str, cuda_or_meta: torch.device) -> None:
    case = here(name, cuda_or_meta)
    of_layers = LayerCAV(case.model, case.layers, rules=preset)
    of_inputs = InputCAV(case.model, rules=preset) if case.inputs.is_floating_point() else of_layers
    check_reads(f"network {name}", cuda_or_meta, of_layers.attribute, case.inputs, 0)
    for with_delta in (False, True):
        check_reads(
            f"network {name}", cuda_or_meta, of_inputs.attribute, case.inputs, 0, return_convergence_delta=with_delta
        )


_OPTIONS: dict[str, Callable[[Case], Any]] = {
    "score units": lambda case: layers_and_inputs(case, True, normalize=None),
    "absolute score": lambda case: layers_and_inputs(case, True, normalize="abs"),
    "log odds": lambda case: layers_and_inputs(case, True, score="log_odds"),
    "a target for each sample": lambda case: LayerCAV(case.model, case.layers[0], score="log_odds").attribute(
        case.inputs, [2, 0, 1]
    ),
    "input of the layer": lambda case: LayerCAV(case.model, case.layers[-1]).attribute(
        case.inputs, 0, attribute_to_layer_input=True, relu_attributions=True, attr_dim_summation=True
    ),
    "materialize_grads": lambda case: LayerCAV(case.model, case.layers).attribute(
        case.inputs, 0, grad_kwargs={"materialize_grads": True}
    ),
    "verify": lambda case: verify(case.model, case.inputs, 0, layer=case.layers[0]),
}


@pytest.mark.parametrize("option", _OPTIONS)
@few_are_quick(*ALL_NETWORKS)
def test_options_wait_for_nothing(name: str, option: str, cuda_or_meta: torch.device) -> None:
    case = here(name, cuda_or_meta)
    check_reads(f"network {name}", cuda_or_meta, _OPTIONS[option], case)


@pytest.mark.parametrize("of_input", [False, True], ids=["output", "input"])
@few_are_quick(*(name for name in ALL_NETWORKS if name != "words"))
def test_neurons_wait_for_nothing(name: str, of_input: bool, cuda_or_meta: torch.device) -> None:
    case = here(name, cuda_or_meta)

    def first(value: Any) -> torch.Tensor:
        return (value[0] if isinstance(value, tuple) else value).flatten(1)[:, 0]

    cav = NeuronCAV(case.model, case.layers[-1])
    check_reads(
        f"network {name}",
        cuda_or_meta,
        cav.attribute,
        case.inputs,
        first,
        attribute_to_neuron_input=of_input,
        return_convergence_delta=True,
    )


@few_are_quick(*_DIFFERENTIABLE)
def test_contributions_with_a_graph_wait_for_nothing(name: str, cuda_or_meta: torch.device) -> None:
    case = here(name, cuda_or_meta)

    def trained() -> list[Any]:
        kept = {"create_graph": True}
        maps = LayerCAV(case.model, case.layers[0]).attribute(case.inputs, 0, grad_kwargs=kept)
        of_inputs = InputCAV(case.model).attribute(case.inputs, 0, grad_kwargs=kept)
        loss = maps.square().sum() + of_inputs.square().sum()
        return [maps, of_inputs, torch.autograd.grad(loss, list(case.model.parameters()), allow_unused=True)]

    check_reads(f"network {name}", cuda_or_meta, trained)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@few_are_quick(*ALL_NETWORKS)
def test_other_types_of_numbers_wait_for_nothing(name: str, dtype: torch.dtype, cuda_or_meta: torch.device) -> None:
    case = here(name, cuda_or_meta, dtype)
    check_reads(f"network {name}", cuda_or_meta, layers_and_inputs, case, True)


@pytest.mark.parametrize(
    "read",
    [
        float,
        bool,
        torch.nonzero,
        torch.Tensor.cpu,
        lambda x: x.new_tensor(1.0),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.ones(2).to(x.device),
        lambda x: torch.linalg.inv(x.expand(1, 1)),
        lambda x: x.expand(2)[torch.ones(2, dtype=torch.bool, device=x.device)],
    ],
)
def test_waiting_is_found(read: Any, cuda_or_meta: torch.device) -> None:
    x = torch.ones((), device=cuda_or_meta)
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError)), none_allowed(cuda_or_meta):
        read(x)


@pytest.mark.parametrize("mix", [torch.matmul, torch.where, torch.cat, torch.add])
def test_tensors_of_the_host_are_found(mix: Any) -> None:
    x, other = torch.ones(2, 2, device="meta"), torch.ones(2, 2)
    arguments = {torch.where: (x > 0, x, other), torch.cat: ([x, other],)}.get(mix, (x, other))
    with pytest.raises((RuntimeError, AssertionError)), none_allowed(x.device):
        mix(*arguments)


def test_waiting_in_the_backward_pass_is_found() -> None:
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return gradient + torch.ones(2).to(gradient.device)

    x = torch.ones(2, device="meta", requires_grad=True)
    with pytest.raises(AssertionError, match="host and device"), none_allowed(x.device):
        torch.autograd.grad(Reads.apply(x).sum(), x)


def test_the_list_names_networks_that_exist() -> None:
    assert names_of("network") <= set(ALL_NETWORKS)
