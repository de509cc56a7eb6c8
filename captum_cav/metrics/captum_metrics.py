"""Captum's infidelity and sensitivity for attributions of any method, also for attributions of layers.

``captum.metrics.infidelity`` multiplies perturbations of the inputs with attributions, so the attributions must have
the shape of the inputs. Here the units of a layer are perturbed, and the forward pass continues from the layer.
``captum.metrics.sensitivity_max`` expects one row for each sample. The function here brings the attributions of layers
into this form.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from captum import metrics as captum_metrics

from captum_cav import checks
from captum_cav.attribution import Attributions
from captum_cav.errors import CAVTypeError, InputError, OptionError
from captum_cav.torch_internals import tree_leaves, tree_map


def infidelity(
    forward_func: Callable[..., Any],
    perturb_func: Callable[..., Any],
    inputs: Any,
    attributions: Attributions,
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
    """How much attributions differ from the effect of perturbations on the score; 0 is best.

    The value is the mean of ``(sum_i I_i * phi_i - (f(a) - f(a - I)))^2`` over random perturbations ``I``. Here ``a``
    are the inputs or, with ``layer``, the units of the layer, and ``f`` is the score as a function of ``a``. What
    bypasses the layer does not change. Some attributions are already multiplied by the units (contributions, gradient x
    activation, Grad-CAM, integrated gradients, ...). For these the first ``I_i`` is the removed share of the unit,
    ``I_i / a_i``.

    The attributions must be in score units (``LayerCAV(..., normalize=None)``), or ``normalize`` must be True.

    Args:
        forward_func: the model, or any callable that returns scores of shape (N,) or (N, ...).
        perturb_func: takes the units, repeated to shape (M, ...) (a tuple if there are several tensors), and the
            baselines if there are any. Returns a pair: perturbations and perturbed units.
            ``captum.metrics.infidelity_perturb_func_decorator`` makes such a function from a function that returns only
            perturbed units.
        inputs: a tensor of shape (N, ...), or a tuple of the inputs of the model.
        attributions: the shape of the units, or size 1 in a dimension that was summed (as the channels by Grad-CAM).
            Then a perturbation also has size 1 there, and is the same for all summed units.
        baselines: passed on to ``perturb_func``: a number or a tensor, or one for each tensor of the units.
        additional_forward_args: further arguments of ``forward_func``, a tuple or a single argument.
        target: which output is the score, in any of Captum's forms.
        n_perturb_samples: how many perturbations of each sample to average over.
        max_examples_per_batch: how many perturbed samples to run at once, at least N; None for all.
        normalize: whether to scale the attributions of each sample by the factor that fits best.
        layer: the attributed layer, a module or its qualified name; None for the inputs.
        attribute_to_layer_input: whether the units are the input of the layer. Otherwise they are the output.
        call: if the forward pass reaches the layer several times, which call: 0 for the first, -1 for the last.

    Returns:
        Shape (N,).

    Raises:
        InputError: if shapes do not fit each other.
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
        >>> bool(infidelity(net, fade, x, contributions, layer="1") < 1e-10)   # the net is linear behind the layer
        True
    """
    checks.check_count(n_perturb_samples, "n_perturb_samples")
    forward_func = checks.check_model(forward_func)
    checks.check_scripted(forward_func)
    inputs, additional = _as_tuple(inputs), checks.additional_arguments(additional_forward_args)
    if layer is None:
        name, site, units = "the inputs", None, _tensors("inputs", inputs)
        with torch.no_grad():
            output = forward_func(*inputs, *additional)
    else:
        found_name, module = checks.find_layer(forward_func, layer)
        name = f"layer {found_name}"
        site = _Site(module, attribute_to_layer_input, checks.check_call(call))
        output, calls = site.run(forward_func, (*inputs, *additional))
        chosen = checks.choose_call(found_name, len(calls), site.call)
        site, units = site._replace(call=chosen), calls[chosen]
    output = checks.check_output(output)
    samples = len(output)
    parts = _tensors("attributions", attributions)
    _check_shapes(parts, units, samples, name)

    def score(*perturbed: torch.Tensor) -> torch.Tensor:
        rows = len(perturbed[0])

        def repeat(value: Any) -> Any:
            is_of_samples = isinstance(value, torch.Tensor) and value.shape[:1] == (samples,)
            return value.repeat_interleave(rows // samples, 0) if is_of_samples else value

        others = tree_map(repeat, additional)
        if site is None:
            found = forward_func(*perturbed, *others)
        else:
            found, _ = site.run(forward_func, (*tree_map(repeat, inputs), *others), perturbed)
        found = checks.check_output(found)
        if len(found) != rows:
            raise InputError(f"forward_func returned {tuple(found.shape)} for {rows} samples; expected a row of each.")
        return found

    def perturb(*arguments: Any) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        pair = perturb_func(*arguments)
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise CAVTypeError(
                f"perturb_func returned a {type(pair).__name__}; expected a pair of perturbations and perturbed units. "
                "captum.metrics.infidelity_perturb_func_decorator makes it of perturbed units alone."
            )
        rows = len(_as_tuple(arguments[0])[0])
        for what, tensors, like in zip(("perturbations", "perturbed units"), pair, (parts, units), strict=True):
            found = [tuple(tensor.shape) for tensor in _tensors(what, tensors)]
            expected = [(rows, *tensor.shape[1:]) for tensor in like]
            if found != expected:
                raise InputError(f"perturb_func returned {what} of shape {found}; expected {expected}.")
        perturbations, perturbed = map(_as_tuple, pair)
        # In a summed dimension, _spread writes the attributions into the first entry and zeros into the others.
        return tuple(part.expand_as(unit) for part, unit in zip(perturbations, perturbed, strict=True)), perturbed

    result: torch.Tensor = captum_metrics.infidelity(
        score,
        perturb,
        units,
        tuple(_spread(part, unit) for part, unit in zip(parts, units, strict=True)),
        baselines,
        target=checks.resolve_target(output, target),
        n_perturb_samples=n_perturb_samples,
        max_examples_per_batch=max_examples_per_batch,
        normalize=normalize,
    )
    return result


def sensitivity_max(
    explanation_func: Callable[..., Any],
    inputs: Attributions,
    perturb_func: Callable[..., Any] | None = None,
    perturb_radius: float = 0.02,
    n_perturb_samples: int = 10,
    norm_ord: Any = "fro",
    max_examples_per_batch: int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """How much an explanation changes when the inputs change slightly; 0 is best.

    The value is the largest ``|phi(x') - phi(x)| / |phi(x)|`` over random ``x'`` near ``x``. The inputs are perturbed,
    also if a layer is explained. Several tensors, as the attributions of a list of layers, count as one explanation.

    Args:
        explanation_func: the ``attribute`` of an attribution method, or any function that explains inputs.
        inputs: a tensor of shape (N, ...) or a tuple of such tensors.
        perturb_func: takes the repeated inputs (a tuple if there are several) and, if the function has a second
            parameter, the radius. Returns perturbed inputs. None changes each element by a uniform random number within
            the radius.
        perturb_radius: the largest change of an element.
        n_perturb_samples: how many perturbations of each sample to try.
        norm_ord: the norm, as for :func:`torch.norm`.
        max_examples_per_batch: how many perturbed samples to explain at once, at least N; None for all.
        kwargs: further arguments of ``explanation_func``. ``target``, ``baselines`` and the tensors of
            ``additional_forward_args`` are repeated like the samples. All other arguments are passed on unchanged.

    Returns:
        Shape (N,).

    Raises:
        CAVTypeError: if ``explanation_func`` is no function or does not return tensors.
        InputError: if it does not return one row a sample.
        OptionError: for ``return_convergence_delta=True``, because the delta is no part of the explanation.

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
    checks.check_count(n_perturb_samples, "n_perturb_samples")
    if not callable(explanation_func):
        raise CAVTypeError(
            f"explanation_func is a {type(explanation_func).__name__}; expected a function, as "
            "LayerCAV(model, layer).attribute."
        )
    if kwargs.get("return_convergence_delta"):
        raise OptionError(
            "return_convergence_delta is True, but the delta is no part of the explanation; leave it out."
        )
    _tensors("inputs", inputs)
    # Captum makes deep copies of repeated arguments. Only tensors go there, because a copied module is another module.
    repeated: dict[str, Any] = {key: kwargs.pop(key) for key in ("target", "baselines") if key in kwargs}
    additional = checks.additional_arguments(kwargs.pop("additional_forward_args", None))
    repeated["additional_forward_args"] = tuple(arg.detach() for arg in additional if isinstance(arg, torch.Tensor))
    if perturb_func is not None:
        repeated["perturb_func"] = perturb_func

    def explain(perturbed: Any, additional_forward_args: Sequence[torch.Tensor], **options: Any) -> Any:
        perturbed = _as_tuple(perturbed)
        if additional:
            moving = iter(additional_forward_args)
            arguments = (next(moving) if isinstance(arg, torch.Tensor) else arg for arg in additional)
            options["additional_forward_args"] = tuple(arguments)
        found = explanation_func(perturbed if isinstance(inputs, tuple) else perturbed[0], **options, **kwargs)
        explanation = _tensors("explanations", tuple(tree_leaves(found)))
        samples = len(perturbed[0])
        for part in explanation:
            if part.shape[:1] != (samples,):
                raise InputError(
                    f"explanation_func returned shape {tuple(part.shape)} for {samples} samples; expected one row a "
                    "sample. Pass a function that moves the samples to the first dimension."
                )
        return tuple(part.detach().contiguous() for part in explanation)

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
    call: int | None

    def run(
        self, forward_func: Callable[..., Any], arguments: tuple[Any, ...], instead: tuple[torch.Tensor, ...] = ()
    ) -> tuple[Any, list[tuple[torch.Tensor, ...]]]:
        """Run the model, and return its output and the units of each call; ``instead`` replaces those of one call."""
        calls: list[tuple[torch.Tensor, ...]] = []
        thread = threading.get_ident()

        def meet(value: Any) -> Any:
            if threading.get_ident() != thread:  # another thread runs the same model at the same time
                return value
            # Copies, because the model may write into the units later.
            calls.append(tuple(leaf.clone() for leaf in tree_leaves(value) if checks.is_floating(leaf)))
            if not instead or len(calls) - 1 != self.call:
                return value
            units = iter(instead)
            return tree_map(lambda leaf: next(units).clone() if checks.is_floating(leaf) else leaf, value)

        if self.of_input:
            hook = self.module.register_forward_pre_hook(lambda _, *given: meet(given), with_kwargs=True)
        else:
            hook = self.module.register_forward_hook(lambda _, arguments, output: meet(output))
        with hook, torch.no_grad():
            return forward_func(*arguments), calls


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _tensors(what: str, value: Any) -> tuple[torch.Tensor, ...]:
    for part in _as_tuple(value):
        if not isinstance(part, torch.Tensor):
            raise CAVTypeError(f"{what}: expected a tensor or a tuple of tensors, got a {type(part).__name__}.")
    return _as_tuple(value)


def _check_shapes(parts: Sequence[torch.Tensor], units: Sequence[torch.Tensor], samples: int, name: str) -> None:
    if len(parts) != len(units):
        raise InputError(
            f"attributions hold {len(parts)} tensors, {name} {len(units)}; expected one for each (of a pair with a "
            "convergence delta, pass the first)."
        )
    for part, unit in zip(parts, units, strict=True):
        shape, expected = tuple(part.shape), tuple(unit.shape)
        if expected[:1] != (samples,):
            raise InputError(f"{name} has shape {expected}; expected the {samples} samples in the first dimension.")
        summed = len(shape) == len(expected) and all(a in (1, b) for a, b in zip(shape, expected, strict=True))
        if not summed or shape[0] != samples:
            raise InputError(
                f"attributions have shape {shape} and {name} {expected}; expected the same, or 1 in dimensions that "
                "were summed. Pass layer= and attribute_to_layer_input= as they were for the attributions."
            )


def _spread(part: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Attributions in the shape of the units. In a summed dimension the first entry has the sum, the others are 0."""
    spread = part.new_zeros(unit.shape)
    spread[tuple(map(slice, part.shape))] = part.detach()
    return spread
