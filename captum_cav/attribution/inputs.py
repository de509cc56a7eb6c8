"""Contribution ratios of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, overload

import torch
from captum.attr import GradientAttribution

from captum_cav import checks
from captum_cav.attribution.contributions import ContributionAttribution, as_picture, has_graph, logs_usage
from captum_cav.attribution.explained_inputs import (
    check_explained,
    contributions_of_inputs,
    embeddings_for,
    explained_taps,
    in_form,
    tap_names,
)
from captum_cav.attribution.input_checks import Arguments, check_arguments
from captum_cav.attribution.options import Normalize, OnUnknown, Output, Rules, check_options
from captum_cav.attribution.parts import in_parts
from captum_cav.attribution.results import Inputs
from captum_cav.attribution.scores import Score, select_passed
from captum_cav.propagation.records import RuleTable
from captum_cav.propagation.reentrancy import suspends_outer_attribution


class InputCAV(ContributionAttribution):
    """Contribution ratios of the elements of the inputs: the map with the finest resolution.

    Args:
        forward_func: the model, or any callable that returns scores of shape (N,) or (N, ...).
        rules, normalize, on_unknown, score, multiply_by_inputs, output: as for :class:`LayerCAV`.

    Source: Kakishita and Hattori, equations 1-9.

    Example::

        >>> import torch
        >>> InputCAV(lambda x: x[:, 0] + 3 * x[:, 1]).attribute(torch.tensor([[1., 1.]]))
        tensor([[0.2500, 0.7500]])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        rules: Rules = None,
        normalize: Normalize = "score",
        on_unknown: OnUnknown = "error",
        score: Score = "output",
        multiply_by_inputs: bool = True,
        output: Output = None,
    ) -> None:
        forward_func = checks.check_model(forward_func)
        self._options = check_options(forward_func, rules, normalize, on_unknown, score, multiply_by_inputs, output)
        GradientAttribution.__init__(self, forward_func)

    @suspends_outer_attribution
    def explain_rules(
        self,
        inputs: Any,
        additional_forward_args: Any = None,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> RuleTable:
        """Which operation met which rule, and why: as :meth:`LayerCAV.explain_rules`, for all that follows the inputs.

        Args:
            inputs, additional_forward_args, additional_forward_kwargs: as for :meth:`attribute`.

        Returns:
            One row for each operation, in the order of the forward pass, which prints as a table.

        Raises:
            CAVError: as for :meth:`attribute`.
        """
        arguments = check_arguments(
            self.forward_func,
            inputs,
            additional_forward_args,
            additional_forward_kwargs=additional_forward_kwargs,
            inputs_are_explained=True,
        )
        embeds = embeddings_for(arguments, self.forward_func)
        passed = self._forward(arguments, tap_inputs=True, embeds=embeds, with_rules=True)
        explained_taps(passed, arguments)
        assert passed.trace.rules is not None
        return passed.trace.rules.table(self._options.rules.title)

    @overload
    def attribute(
        self,
        inputs: Inputs,
        target: Any = None,
        additional_forward_args: Any = None,
        attr_dim_summation: bool = False,
        return_convergence_delta: Literal[False] = False,
        grad_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> Inputs: ...

    @overload
    def attribute(
        self,
        inputs: Inputs,
        target: Any = None,
        additional_forward_args: Any = None,
        attr_dim_summation: bool = False,
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
        target: Any = None,
        additional_forward_args: Any = None,
        attr_dim_summation: bool = False,
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
        target: Any = None,
        additional_forward_args: Any = None,
        attr_dim_summation: bool = False,
        return_convergence_delta: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Contribution ratios of each element of the inputs to the score of each sample.

        Args:
            inputs: a tensor of shape (N, ...), a tuple of such tensors, or a dict of inputs that the model takes by
                keyword, such as what a tokenizer returns. An input of integers, such as the indices of words, is
                explained at the embedding layer that takes it: an index gets the sum over its embedding. A subclass of
                tensors counts as the plain tensor, and the result is a plain tensor.
            target, additional_forward_args, attr_dim_summation: as for :meth:`LayerCAV.attribute`.
            return_convergence_delta, grad_kwargs, internal_batch_size: as for :meth:`LayerCAV.attribute`.
            additional_forward_kwargs: as for :meth:`LayerCAV.attribute`.

        Returns:
            A tensor of the shape of ``inputs``; a tuple of tensors if ``inputs`` is a tuple. If ``inputs`` is a dict, a
            dict without the entries that have no contributions, such as masks. With ``return_convergence_delta``, a
            pair of the attributions and the delta of shape (N,): one delta for all inputs together, ``1 - ratios of all
            inputs - shares of constants``.

        Raises:
            CAVTypeError: for integer inputs that no embedding layer takes as they are.
            InputError, TargetError, ModelError, UnsupportedOperationError: as for :meth:`LayerCAV.attribute`.
        """
        arguments = check_arguments(
            self.forward_func,
            inputs,
            additional_forward_args,
            [target],
            additional_forward_kwargs,
            inputs_are_explained=True,
        )

        is_tuple = isinstance(inputs, (tuple, list))

        def explain(part: Arguments) -> Any:
            return self._explain(part, is_tuple, attr_dim_summation, return_convergence_delta, grad_kwargs)

        return in_parts(arguments, internal_batch_size, explain)

    def _explain(
        self,
        arguments: Arguments,
        is_tuple: bool,
        attr_dim_summation: bool,
        return_convergence_delta: bool,
        grad_kwargs: dict[str, Any] | None,
    ) -> Any:
        """What :meth:`attribute` returns, from one forward pass. ``is_tuple`` tells whether the inputs are a tuple."""
        (target,) = arguments.targets
        passed = self._forward(
            arguments,
            tap_inputs=True,
            embeds=embeddings_for(arguments, self.forward_func),
            with_shares=return_convergence_delta,
            with_rules=has_graph(grad_kwargs),
        )
        taps = explained_taps(passed, arguments)
        check_explained(passed, multiplies_by_inputs=self.multiplies_by_inputs, with_graph=has_graph(grad_kwargs))
        found, deltas = self._contributions(
            passed,
            select_passed(passed, target, self._options.score, taps, arguments.part),
            taps,
            tap_names(passed, arguments, taps),
            with_delta=return_convergence_delta,
            joint=True,
            grad_kwargs=grad_kwargs,
        )
        if has_graph(grad_kwargs):
            found = self._differentiable(passed, arguments, target, [], 0, grad_kwargs)
        parts = contributions_of_inputs(passed, arguments, taps, found)
        attributions = in_form(
            [None if part is None else as_picture(part, False, attr_dim_summation) for part in parts],
            arguments.names,
            is_tuple,
        )
        return (attributions, deltas[0]) if return_convergence_delta else attributions
