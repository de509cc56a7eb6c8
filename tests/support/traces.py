"""What an attribution could leave behind on a model, its inputs or the process."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.tensors import bits_of


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


class InjectedError(Exception):
    """Nobody else raises or expects this."""


def inject(monkeypatch: pytest.MonkeyPatch, module: nn.Module, error: BaseException) -> None:
    """Let a module raise once its forward pass is done."""
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        raise error

    monkeypatch.setattr(module, "forward", forward)


def watch_activations(net: nn.Module) -> list[weakref.ref[Any]]:
    """References to the memory of every module's output, from now on."""
    watched: list[weakref.ref[Any]] = []
    for module in net.modules():
        module.register_forward_hook(lambda _, args, output: watched.append(weakref.ref(output.untyped_storage())))
    return watched


def alive(watched: list[weakref.ref[Any]]) -> int:
    return sum(reference() is not None for reference in watched)
