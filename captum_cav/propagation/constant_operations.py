"""Operations on constants alone, such as parameters. The model may keep their results, with the graph of torch."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any, TypeAlias

import torch

from captum_cav.propagation.table import Treatment
from captum_cav.tensors import map_tensors

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def run_on_constants(
    func: Callable[..., Any], admitted: Arguments, given: Arguments, treatment: Treatment, keeps_graphs: bool
) -> Any:
    """Run a function on constants, such as parameters.

    The model may keep the result: pruned weights, cached weights. So the result gets the graph that it would have
    without the propagation. The propagation detaches the result where the result meets a tensor with contributions.

    Args:
        func: the function.
        admitted: its arguments and keyword arguments, with parameters detached.
        given: the same as the model gave them.
        treatment: what is known of the function.
        keeps_graphs: whether the caller lets torch record graphs.
    """
    (args, kwargs), (given_args, given_kwargs) = admitted, given
    if "out" in kwargs:
        return func(*args, **{**kwargs, "out": given_kwargs["out"]})
    target = given_args[0] if given_args else None
    if treatment.writes_in_place(args, kwargs) and not (isinstance(target, torch.Tensor) and target.grad_fn):
        unchanged = isinstance(target, torch.Tensor) and not target.requires_grad
        return func(target if unchanged else args[0], *args[1:], **kwargs) if args else func(**kwargs)
    if not keeps_graphs or (all(map(is_, args, given_args)) and all(map(is_, kwargs.values(), given_kwargs.values()))):
        return func(*args, **kwargs)
    with_graph = {key: map_tensors(usable, value) for key, value in given_kwargs.items()}
    return func(*map_tensors(usable, given_args), **with_graph)


def usable(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that autograd can save. Autograd saves no tensor that was made under ``torch.inference_mode()``."""
    return tensor.clone() if tensor.is_inference() else tensor
