"""Contribution ratios of the inputs to a neuron."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, overload

import torch
from captum.attr import GradientAttribution, NeuronAttribution

from captum_cav import checks
from captum_cav.attribution.contributions import ContributionAttribution, chosen_tap, has_graph, logs_usage
from captum_cav.attribution.explained_inputs import (
    check_explained,
    contributions_of_inputs,
    embeddings_for,
    explained_taps,
    in_form,
    tap_names,
)
from captum_cav.attribution.input_checks import Arguments, check_arguments
from captum_cav.attribution.options import Normalize, OnUnknown, Rules, check_options
from captum_cav.attribution.parts import in_parts
from captum_cav.attribution.results import Inputs
from captum_cav.attribution.scores import SelectedScores
from captum_cav.attribution.squashing import is_hidden, squashing_of
from captum_cav.captum_internals import select_neuron
from captum_cav.propagation.forward import Forward
from captum_cav.propagation.hooks import Site
from captum_cav.propagation.reentrancy import suspends_outer_attribution
from captum_cav.tensors import tensors_in

NeuronSelector: TypeAlias = int | slice | tuple[int | slice, ...] | Callable[..., torch.Tensor]


class NeuronCAV(NeuronAttribution, ContributionAttribution):  # type: ignore[misc]
    """Contribution ratios of the inputs to one neuron of a layer, in the place of the score.

    The operations behind the layer run without rules, so they need none.

    Args:
        forward_func: the model, or any callable. Of a :class:`torch.nn.DataParallel` model, the module inside is
            explained, on the one device where the module is.
        layer: a module or its qualified name.
        device_ids: None, or a list with the one device of the model; other ids are refused, as by :class:`LayerCAV`.
        rules, normalize, on_unknown, call, multiply_by_inputs: as for :class:`LayerCAV`; the score is the value of the
            neuron. Of a sigmoid or a softmax, ``attribute_to_neuron_input=True`` explains the logit.

    Source: Kakishita and Hattori, equations 1-9 with the neuron in the place of the score.

    Example::

        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 5))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1., 1.], [1., 3.]]))
        >>> NeuronCAV(net, net[0]).attribute(torch.tensor([[1., 1.]]), neuron_selector=1)
        tensor([[0.2500, 0.7500]])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: torch.nn.Module | str,
        device_ids: Sequence[int | str | torch.device] | None = None,
        *,
        rules: Rules = None,
        normalize: Normalize = "score",
        on_unknown: OnUnknown = "error",
        call: int | None = None,
        multiply_by_inputs: bool = True,
    ) -> None:
        forward_func = checks.check_model(forward_func)
        self._options = check_options(forward_func, rules, normalize, on_unknown, multiply_by_inputs=multiply_by_inputs)
        self._name, module = checks.find_layer(forward_func, layer)
        NeuronAttribution.__init__(self, forward_func, module)
        GradientAttribution.__init__(self, forward_func)
        checks.check_device_ids(device_ids, forward_func, [module])
        self.device_ids = device_ids
        self._call = checks.check_call(call)

    def _repr_of_layers(self) -> list[str]:
        return [self._name]

    @overload
    def attribute(
        self,
        inputs: Inputs,
        neuron_selector: NeuronSelector,
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
        return_convergence_delta: Literal[False] = False,
        grad_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> Inputs: ...

    @overload
    def attribute(
        self,
        inputs: Inputs,
        neuron_selector: NeuronSelector,
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
        *,
        return_convergence_delta: Literal[True],
        grad_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[Inputs, torch.Tensor]: ...

    @overload
    def attribute(
        self,
        inputs: Any,
        neuron_selector: NeuronSelector,
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
        return_convergence_delta: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> Any: ...

    @logs_usage
    @suspends_outer_attribution
    def attribute(
        self,
        inputs: Any,
        neuron_selector: NeuronSelector,
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
        return_convergence_delta: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Contribution ratios of each element of the inputs to the value of a neuron.

        Args:
            inputs: as for :meth:`InputCAV.attribute`.
            neuron_selector: which neuron, as in Captum: an index, a slice, a tuple of indices or slices behind the
                batch dimension (the neurons of a slice are summed), or a function of the output of the layer, such as a
                score of :mod:`captum_cav.scores`. The function gives one number for each sample, or one number for all
                samples together. Its operations have rules, too.
            additional_forward_args, return_convergence_delta, grad_kwargs: as for :meth:`LayerCAV.attribute`.
            additional_forward_kwargs: as for :meth:`LayerCAV.attribute`.
            attribute_to_neuron_input: whether the neuron belongs to the input of the layer instead of its output.
            internal_batch_size: as for :meth:`LayerCAV.attribute`; a selector that is a function then gives one number
                for each sample.

        Returns:
            As :meth:`InputCAV.attribute`.

        Raises:
            LayerError: if the forward pass does not reach the layer.
            InputError, TargetError, ModelError, CAVTypeError, UnsupportedOperationError: as for
                :meth:`InputCAV.attribute`.
        """
        arguments = check_arguments(
            self.forward_func,
            inputs,
            additional_forward_args,
            additional_forward_kwargs=additional_forward_kwargs,
            inputs_are_explained=True,
        )

        is_tuple = isinstance(inputs, (tuple, list))

        def explain(part: Arguments) -> Any:
            return self._explain(
                part, is_tuple, neuron_selector, attribute_to_neuron_input, return_convergence_delta, grad_kwargs
            )

        return in_parts(arguments, internal_batch_size, explain)

    def _explain(
        self,
        arguments: Arguments,
        is_tuple: bool,
        neuron_selector: Any,
        attribute_to_neuron_input: bool,
        return_convergence_delta: bool,
        grad_kwargs: dict[str, Any] | None,
    ) -> Any:
        """What :meth:`attribute` returns, from one forward pass. ``is_tuple`` tells whether the inputs are a tuple."""
        passed = self._forward(
            arguments,
            [Site(self.layer, attribute_to_neuron_input)],
            tap_inputs=True,
            embeds=embeddings_for(arguments, self.forward_func),
            keep_carriers=True,
            # Which call is the last is not known before the forward pass ends.
            end_at_call=None if (self._call or 0) < 0 else self._call or 0,
            with_shares=return_convergence_delta,
        )
        taps = explained_taps(passed, arguments)
        check_explained(passed, multiplies_by_inputs=self.multiplies_by_inputs, with_graph=has_graph(grad_kwargs))
        found, deltas = self._contributions(
            passed,
            self._select_neuron(passed, neuron_selector, taps, arguments.part),
            taps,
            tap_names(passed, arguments, taps),
            what="the neuron's value is",
            with_delta=return_convergence_delta,
            joint=True,
            grad_kwargs=grad_kwargs,
        )
        attributions = in_form(contributions_of_inputs(passed, arguments, taps, found), arguments.names, is_tuple)
        return (attributions, deltas[0]) if return_convergence_delta else attributions

    def _select_neuron(self, passed: Forward, selector: Any, taps: Sequence[int], part: range | None) -> SelectedScores:
        """The value of the neuron, as the score that is explained, for the whole batch or for a part of the batch."""
        index = chosen_tap(passed, 0, self._name, self._call)
        carriers = passed.carriers[passed.calls[0].index(index)]
        tensors = tuple(tensors_in(carriers))
        values = tuple(tensor for tensor in tensors if tensor.requires_grad)
        selector = checks.check_neuron(selector, values)
        if callable(selector):
            # A function gets all that the layer gives, as in Captum: also integers, such as the indices of a pooling.
            neuron = passed.extend(select_neuron, tensors, selector)
        else:
            with torch.enable_grad():
                neuron = select_neuron(values, selector)
        checks.check_one_for_each(neuron, "neuron_selector", part)
        if not neuron.dim():
            with torch.enable_grad():
                neuron = neuron.reshape(1)
        first_sample = part.start if part is not None else 0
        selected = SelectedScores(neuron, torch.zeros_like(neuron.detach()), values[0], first_sample=first_sample)
        squashing = squashing_of(values[0], passed.trace.run)
        if squashing is None:
            return selected._replace(is_hidden=is_hidden(values[0], passed.trace.run))
        if callable(selector) or not all(squashing.lies_behind(taps, passed.trace.run)):
            return selected
        indices = selector if isinstance(selector, tuple) else (selector,)
        slopes = squashing.slopes(neuron, passed.trace)[(slice(None), *indices)].reshape(len(neuron), -1)
        return selected._replace(slopes=slopes.amin(1), can_turn_back=slopes.shape[1] == 1)
