"""Captum's infidelity and sensitivity, for attributions of layers too; whichever method they come from.

``captum.metrics.infidelity`` multiplies perturbations of the inputs with attributions, which must have the inputs'
shape; here the units of a layer are perturbed, and the score is followed from there on.
``captum.metrics.sensitivity_max`` takes the rows of a layer's map for several maps; here it gets what it expects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from captum import metrics as captum_metrics
from torch.utils._pytree import tree_leaves, tree_map

from captum_cav import checks
from captum_cav.errors import CAVTypeError, InputError, LayerError, OptionError

Tensors = torch.Tensor | tuple[torch.Tensor, ...]


def infidelity(
    forward_func: Callable[..., Any],
    perturb_func: Callable[..., Any],
    inputs: Any,
    attributions: Tensors,
    baselines: Any = None,
    additional_forward_args: Any = None,
    target: Any = None,
    n_perturb_samples: int = 10,
    max_examples_per_batch: int | None = None,
    normalize: bool = False,
    *,
    layer: torch.nn.Module | str | None = None,
    attribute_to_layer_input: bool = False,
    call: int | None = None,
) -> torch.Tensor:
    """How far attributions are from what perturbations of the attributed units do to the score; 0 is best.

    The mean of ``(sum_i I_i * phi_i - (f(a) - f(a - I)))^2`` over random perturbations ``I``, where ``a`` are the inputs
    or, with ``layer``, the layer's units, and ``f`` is the score from there on: what bypasses the layer stays as it was.
    For attributions that are multiplied by the units (contributions, gradient x activation, Grad-CAM, ...) ``I_i`` is the
    *share* of the unit that is taken away, ``I_i / a_i``.

    The attributions have to be in units of the score (``LayerCAV(..., normalize=None)``), or ``normalize`` be True.

    Args:
        forward_func: the model, or any callable that returns scores of shape (N,) or (N, ...).
        perturb_func: takes the units, repeated to shape (M, ...) (a tuple where there are several tensors), and the
            baselines if there are any; returns a pair of perturbations and perturbed units.
            ``captum.metrics.infidelity_perturb_func_decorator`` makes one of a function that returns the latter only.
        inputs: a tensor of shape (N, ...), or a tuple of the model's inputs.
        attributions: of the units' shape, or with size 1 in a dimension that was summed (Grad-CAM's channels), and then
            so is each perturbation, which holds for all that was summed.
        baselines: passed on to ``perturb_func``: a number or tensor, or one for each tensor of the units.
        additional_forward_args: further arguments of ``forward_func``, a tuple or a single one.
        target: which output is the score, in any of Captum's forms.
        n_perturb_samples: how many perturbations of each sample to average over.
        max_examples_per_batch: how many perturbed samples to run at once, at least N; None for all.
        normalize: whether to scale the attributions of each sample by the factor that fits best.
        layer: the module or its qualified name whose units were attributed; None for the inputs.
        attribute_to_layer_input: whether they are the layer's input instead of its output.
        call: which call of a layer that the forward pass reaches several times: 0 for the first, -1 for the last.

    Returns:
        Shape (N,).

    Raises:
        InputError: for shapes that do not fit each other.
        CAVTypeError, LayerError, OptionError, TargetError: for other arguments that cannot be used.

    Source: Yeh, Hsieh, Suggala, Inouye and Ravikumar, On the (In)fidelity and Sensitivity of Explanations, 2019.

    Example::

        >>> import torch
        >>> from captum_cav import LayerCAV
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> x = torch.tensor([[1., 2.]])
        >>> def fade(activations):
        ...     shares = torch.rand_like(activations)
        ...     return shares, activations * (1 - shares)
        >>> contributions = LayerCAV(net, "1", normalize=None).attribute(x)
        >>> bool(infidelity(net, fade, x, contributions, layer="1") < 1e-10)   # behind the layer, the net is linear
        True
    """
    _check_number("n_perturb_samples", n_perturb_samples)
    forward_func = checks.check_model(forward_func)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    additional = additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)
    additional = () if additional_forward_args is None else additional
    site = None
    if layer is None:
        with torch.no_grad():
            output, units, whose = forward_func(*inputs, *additional), inputs, "the inputs"
    else:
        name, module = checks.find_layer(forward_func, layer)
        output, calls = _Site(module, attribute_to_layer_input).run(forward_func, (*inputs, *additional))
        number = _choose(len(calls), call, name)
        site, units, whose = _Site(module, attribute_to_layer_input, number), calls[number], f"layer {name}"
    output = checks.check_output(output)
    samples = len(output)
    parts = _tensors("attributions", attributions)
    _check_shapes(parts, units, samples, whose)

    def score(*perturbed: torch.Tensor) -> torch.Tensor:
        rows = len(perturbed[0])

        def repeated(value: Any) -> Any:
            is_of_samples = isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == samples
            return value.repeat_interleave(rows // samples, 0) if is_of_samples else value

        others = tuple(tree_map(repeated, additional))
        if site is None:
            found = forward_func(*perturbed, *others)
        else:
            found, _ = site.run(forward_func, (*tree_map(repeated, inputs), *others), perturbed)
        found = checks.check_output(found)
        if len(found) != rows:
            raise InputError(
                f"forward_func returned {tuple(found.shape)} for {rows} samples; expected a score of each."
            )
        return found

    def perturb(*arguments: Any) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        pair = perturb_func(*arguments)
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise CAVTypeError(
                f"perturb_func returned a {type(pair).__name__}; expected a pair of perturbations and perturbed units. "
                "captum.metrics.infidelity_perturb_func_decorator makes it of perturbed units alone."
            )
        perturbations, perturbed = _tensors("perturbations", pair[0]), _tensors("perturbed units", pair[1])
        rows = len(tree_leaves(arguments[0])[0])
        for what, found, expected in (("perturbations", perturbations, parts), ("perturbed units", perturbed, units)):
            shapes = [tuple(tensor.shape) for tensor in found]
            if shapes != [(rows, *tensor.shape[1:]) for tensor in expected]:
                wanted = ", ".join(str((rows, *tensor.shape[1:])) for tensor in expected)
                raise InputError(f"perturb_func returned {what} of shape {shapes}; expected {wanted}.")
        # Where a dimension was summed, _spread left zeros in all but its first entry.
        return tuple(i.expand_as(a).contiguous() for i, a in zip(perturbations, perturbed, strict=True)), perturbed

    result: torch.Tensor = captum_metrics.infidelity(
        score,
        perturb,
        tuple(units),
        tuple(_spread(part, unit) for part, unit in zip(parts, units, strict=True)),
        baselines=baselines,
        target=checks.resolve_target(output, target),
        n_perturb_samples=n_perturb_samples,
        max_examples_per_batch=max_examples_per_batch,
        normalize=normalize,
    )
    return result


def sensitivity_max(
    explanation_func: Callable[..., Any],
    inputs: Tensors,
    perturb_func: Callable[..., Any] | None = None,
    perturb_radius: float = 0.02,
    n_perturb_samples: int = 10,
    norm_ord: Any = "fro",
    max_examples_per_batch: int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """How far an explanation moves when the inputs are slightly perturbed; 0 is best.

    The largest ``|phi(x') - phi(x)| / |phi(x)|`` over random ``x'`` near ``x``. The inputs are perturbed, whether they
    are what is explained or a layer; several tensors, also those of a list of layers, count as one explanation.

    Args:
        explanation_func: the ``attribute`` of an attribution method, or any function that explains inputs.
        inputs: a tensor of shape (N, ...) or a tuple of such.
        perturb_func: takes the repeated inputs (a tuple where there are several) and, if it has a second parameter, the
            radius; returns perturbed inputs. None draws uniformly from within the radius in each element.
        perturb_radius: how far to perturb.
        n_perturb_samples: how many perturbations of each sample to take the largest of.
        norm_ord: the norm, as for :func:`torch.norm`.
        max_examples_per_batch: how many perturbed samples to explain at once, at least N; None for all.
        kwargs: further arguments of ``explanation_func``. ``target``, ``baselines`` and the tensors of
            ``additional_forward_args`` are repeated with the samples; all others are handed on as they are.

    Returns:
        Shape (N,).

    Raises:
        CAVTypeError: if ``explanation_func`` is no function or does not return tensors.
        InputError: if it does not return one row a sample.
        OptionError: for ``return_convergence_delta=True``; the delta is no part of the explanation.

    Source: as for :func:`infidelity`.

    Example::

        >>> import torch
        >>> from captum_cav import LayerCAV
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False), torch.nn.Flatten())
        >>> def double(inputs):
        ...     return inputs * 2
        >>> sensitivity_max(LayerCAV(net, "0", normalize=None).attribute, torch.ones(1, 2), double, target=0)
        tensor([1.])
    """
    _check_number("n_perturb_samples", n_perturb_samples)
    if not callable(explanation_func):
        raise CAVTypeError(
            f"explanation_func is a {type(explanation_func).__name__}; expected a function, as "
            "LayerCAV(model, layer).attribute."
        )
    if kwargs.get("return_convergence_delta"):
        raise OptionError(
            "return_convergence_delta is True, but the delta is no part of the explanation; leave it out."
        )
    # Captum copies what it repeats, deeply: modules would lose their identity.
    repeated = {key: kwargs.pop(key) for key in ("target", "baselines") if key in kwargs}
    given = kwargs.pop("additional_forward_args", None)
    additional = given if isinstance(given, tuple) else () if given is None else (given,)
    repeated["additional_forward_args"] = tuple(arg.detach() for arg in additional if isinstance(arg, torch.Tensor))

    def explain(perturbed: Tensors, additional_forward_args: Sequence[torch.Tensor], **options: Any) -> Any:
        tensors = _tensors("perturbed inputs", perturbed)
        if additional:
            moving = iter(additional_forward_args)
            options["additional_forward_args"] = tuple(
                next(moving) if isinstance(arg, torch.Tensor) else arg for arg in additional
            )
        found = explanation_func(tensors if isinstance(inputs, tuple) else tensors[0], **options, **kwargs)
        explanation = tree_leaves(found)
        for part in explanation:
            if not isinstance(part, torch.Tensor):
                raise CAVTypeError(f"explanation_func returned a {type(part).__name__}; expected a tensor or several.")
            if part.dim() == 0 or len(part) != len(tensors[0]):
                raise InputError(
                    f"explanation_func returned shape {tuple(part.shape)} for {len(tensors[0])} samples; expected one "
                    "row a sample. Pass a function that moves the samples to the first dimension."
                )
        return tuple(part.detach().contiguous() for part in explanation)

    if perturb_func is not None:
        repeated["perturb_func"] = perturb_func
    result: torch.Tensor = captum_metrics.sensitivity_max(
        explain,
        inputs,
        perturb_radius=perturb_radius,
        n_perturb_samples=n_perturb_samples,
        norm_ord=norm_ord,
        max_examples_per_batch=max_examples_per_batch,
        **repeated,
    )
    return result


class _Site(NamedTuple):
    """Where units are read or replaced: the output or input of a layer, in one of its calls."""

    module: torch.nn.Module
    of_input: bool
    call: int | None = None

    def run(
        self, forward_func: Callable[..., Any], arguments: tuple[Any, ...], instead: tuple[torch.Tensor, ...] = ()
    ) -> tuple[Any, list[list[torch.Tensor]]]:
        """The output, and the units in each call; those of ``self.call`` are replaced where there are others."""
        calls: list[list[torch.Tensor]] = []

        def meet(value: Any) -> Any:
            # In memory of their own: the model may write into them.
            calls.append([leaf.clone() for leaf in tree_leaves(value) if _is_unit(leaf)])
            if not instead or len(calls) - 1 != self.call:
                return value
            units = iter(instead)
            return tree_map(lambda leaf: next(units).clone() if _is_unit(leaf) else leaf, value)

        if self.of_input:
            hook = self.module.register_forward_pre_hook(lambda _, *given: meet(given), with_kwargs=True)
        else:
            hook = self.module.register_forward_hook(lambda _, arguments, output: meet(output))
        with hook, torch.no_grad():
            return forward_func(*arguments), calls


def _is_unit(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def _choose(reached: int, call: int | None, name: str) -> int:
    if not reached:
        raise LayerError(f"layer {name} was not reached by the forward pass; pick one that this input runs through.")
    if (call is None and reached > 1) or not -reached <= (call or 0) < reached:
        raise LayerError(f"layer {name} was reached {reached} times and call is {call}; choose 0 to {reached - 1}.")
    return range(reached)[call or 0]


def _tensors(what: str, value: Any) -> tuple[torch.Tensor, ...]:
    parts = value if isinstance(value, tuple) else (value,)
    for part in parts:
        if not isinstance(part, torch.Tensor):
            raise CAVTypeError(
                f"{what} hold a {type(part).__name__}; expected a tensor, or a tuple of tensors where the units are "
                "several. The layers of a list are measured one at a time."
            )
    return parts


def _check_shapes(parts: Sequence[torch.Tensor], units: Sequence[Any], samples: int, whose: str) -> None:
    if len(parts) != len(units):
        raise InputError(
            f"attributions hold {len(parts)} tensors for {len(units)} of {whose}; expected one for each "
            "(attributions that come in a pair with their delta are its first half)."
        )
    for part, unit in zip(parts, units, strict=True):
        if len(unit) != samples:
            raise InputError(
                f"{whose} hold shape {tuple(unit.shape)} for {samples} samples, which are expected in the first dimension."
            )
        sizes = zip(part.shape[1:], unit.shape[1:], strict=False)
        if part.dim() != unit.dim() or len(part) != samples or any(a not in (1, b) for a, b in sizes):
            raise InputError(
                f"attributions of shape {tuple(part.shape)} for units of shape {tuple(unit.shape)} of {whose}; expected "
                "that shape, or 1 in dimensions that were summed. Name the layer that was attributed with layer=... and, "
                "for its input, attribute_to_layer_input=True."
            )


def _spread(part: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Attributions in the units' shape; what was summed stands in the first entry, beside zeros."""
    if part.shape == unit.shape:
        return part
    spread = part.new_zeros(unit.shape)
    spread[tuple(slice(size) for size in part.shape)] = part.detach()
    return spread


def _check_number(name: str, number: Any) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise OptionError(f"{name} is {number!r}; expected an integer of at least 1.")
