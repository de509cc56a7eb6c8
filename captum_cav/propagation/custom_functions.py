"""Custom autograd functions that a model applies: the operations of their forward passes meet rules like any other."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from captum_cav.propagation import unknown
from captum_cav.propagation.dispatch import Propagation
from captum_cav.propagation.marks import get_mark, refuse_further_use
from captum_cav.tensors import is_number, map_tensors, tensors_in
from captum_cav.torch_internals import apply_as_torch_does, base_of, run_as_written, version_of


class CustomFunctions:
    """Runs the custom autograd functions of a model.

    Args:
        propagation: the mode of the forward pass.
    """

    def __init__(self, propagation: Propagation) -> None:
        self._propagation = propagation

    def run(self, function: type[torch.autograd.Function], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a custom autograd function that the model applies.

        The mode sees the operations of its forward pass. Its backward pass says nothing about contributions.
        """
        propagation = self._propagation
        of_torch = function.__module__.startswith("torch.")  # Hooks of modules, reentrant checkpoints.
        if of_torch or not any(
            tensor.requires_grad and get_mark(tensor, propagation.trace.run) is not None for tensor in tensors_in(args)
        ):
            return apply_as_torch_does(function, args, kwargs)
        # Torch lets such a function write into views that it does not let plain code write into.
        views = [
            arg for arg in args if isinstance(arg, torch.Tensor) and arg.requires_grad and base_of(arg) is not None
        ]
        copies = {id(view): view.clone() for view in views}
        with propagation.saving_before_writing():
            output, constants = run_as_written(function, tuple([copies.get(id(arg), arg) for arg in args]), kwargs)
        for view in views:
            output = self._written_back(view, copies[id(view)], output, f"{function.__name__}{propagation.where()}")
        if any(
            is_number(tensor) and not tensor.requires_grad and id(tensor) not in constants
            for tensor in tensors_in(output)
        ):
            raise unknown.hidden_kernel(function, propagation.where())
        return output

    def _written_back(self, view: torch.Tensor, copy: torch.Tensor, output: Any, who: str) -> Any:
        """Write a copy of a view back if the model wrote into the copy.

        Args:
            view: a view that carries contributions.
            copy: the copy of the view that a custom autograd function got.
            output: what the function returned.
            who: the function, for messages.

        Returns:
            The output, with the view in the place of the copy.
        """
        with self._propagation.paused():
            written = version_of(copy)
        if written:
            try:
                with torch.enable_grad():
                    view.copy_(copy)
            except RuntimeError:  # The view is one of several outputs, into which torch lets nobody write.
                note_written(self._propagation, view, copy, who)
                return output
        return map_tensors(lambda tensor: view if tensor is copy else tensor, output)


def note_written(propagation: Propagation, argument: torch.Tensor, copy: torch.Tensor, who: str) -> None:
    """Note that something wrote, unseen, into a copy of an argument. The model may use the argument afterwards.

    Args:
        propagation: the mode of the forward pass.
        argument: the argument of the model.
        copy: the copy, with its new value.
        who: what wrote into it, for messages.
    """
    if argument.requires_grad:
        refuse_further_use(argument, propagation.trace.run, partial(unknown.overwritten, tuple(argument.shape), who))
        return
    with propagation.paused(), torch.no_grad():
        propagation.trace.saved.before_writing(argument)
        argument.copy_(copy)
