"""Contribution ratios of the units of layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeAlias, overload

import torch
from captum.attr import GradientAttribution, LayerAttribution

from captum_cav import checks
from captum_cav.attribution.contributions import (
    Attributions,
    ContributionAttribution,
    as_picture,
    chosen_tap,
    has_graph,
    logs_usage,
)
from captum_cav.attribution.input_checks import Arguments, check_arguments
from captum_cav.attribution.options import Normalize, OnUnknown, Output, Rules, check_options
from captum_cav.attribution.parts import in_parts
from captum_cav.attribution.results import Deltas, Found, OfLayer
from captum_cav.attribution.scores import Score, select_passed
from captum_cav.attribution.wrappers import flat_in_wrappers
from captum_cav.errors import LayerError
from captum_cav.propagation.forward import Forward
from captum_cav.propagation.hooks import Site
from captum_cav.propagation.records import RuleTable
from captum_cav.propagation.reentrancy import suspends_outer_attribution

#: Whether there is a delta, and for a list of layers, whether there is one for all of them together.
Delta: TypeAlias = bool | Literal["joint"]


class LayerCAV(LayerAttribution, ContributionAttribution, Generic[Found, Deltas]):  # type: ignore[misc]
    """Contribution ratios of the units of layers: which parts gave the network its score.

    The method works on any model. The model is neither changed nor retrained. One forward and one backward pass give
    the contributions of all layers, and nothing before the first of these layers builds a graph.

    In networks of linear operations, ReLU and max pooling the ratios equal activation x gradient / score. In other
    networks (tanh, GELU, gates, layer norm, attention, ...) they differ from it.

    Args:
        forward_func: the model, or any callable that returns scores of shape (N,) or (N, ...). Of a
            :class:`torch.nn.DataParallel` model, the module inside is explained, on the one device where the module is.
        layer: a module, its qualified name (if ``forward_func`` is a module), or a list of either.
        device_ids: None, or a list with the one device of the model. Captum needs the ids to put parts of a batch in
            order that ran on several devices; an attribution here runs on one device, so other ids are refused.
        rules: how contributions pass through operations, where the defaults are not wanted. Either a preset, as
            ``presets.gamma()`` or by its name, or a mapping from keys to rules. A key is a module, a qualified name or
            pattern (``"features.*"``), a type of module, or a torch function; the most specific key wins. A rule is a
            rule of :mod:`captum_cav.rules`, a rule of Captum's LRP, a function of a
            :class:`captum_cav.rules.Operation`, or a list of rules; of a list, the first rule that is for an operation
            governs the operation. A rule in the attribute ``rule`` of a module, as Captum's LRP has it, counts too.
        normalize: what contributions are divided by. ``"score"`` gives the ratios of the paper, ``x * c / p``; if the
            score or its logit is negative, positive ratios lowered the score, and a
            :class:`captum_cav.errors.SignWarning` says so. ``"abs"`` divides by ``|p|`` instead, so that positive
            ratios always raised the score; ratios and shares of constants then sum to the sign of the score, or of its
            logit. None gives contributions in units of the score, as LRP does.
        on_unknown: what happens at an operation without a rule: ``"error"`` refuses the operation; ``"gradient"`` warns
            and passes its gradient on.
        call: which call of a layer is meant if the forward pass reaches the layer several times: 0 for the first, -1
            for the last.
        score: what is explained. ``"output"``: the output of the target. ``"logit"``: the number before the last
            squashing function, as in the paper. Squashing functions are sigmoid, softmax and their logarithms, also
            written by hand; behind them the model may only move or pick numbers. If no such function comes last, the
            logit is the output. ``"log_odds"``: the logarithm of ``p / (1 - p)`` for the probability ``p`` of the
            target, which is its logit minus the log-sum-exp of all other logits, or behind a sigmoid the logit. It
            shows what speaks for this class rather than for any other. Or a function of what the model returns, such
            as one of :mod:`captum_cav.scores`: a region, a detection, a similarity, ...
        multiply_by_inputs: True gives contributions ``x * c``. False gives the coefficients ``c``: what one unit of
            activation adds to the score, or with ``normalize`` to the ratio. They take the place of gradients, as in
            attribution patching. The convergence delta is that of the contributions in both cases.
        output: which part of what the model returns counts as its output, for models that return a dict, a tuple, a
            dataclass or a ``ModelOutput`` of transformers: the name of the part, such as ``"logits"``, its position in
            a tuple, or a function of what the model returns. None for all of it.

    Raises:
        LayerError: for a layer that does not belong to the model; suggests similar names.
        OptionError: for an option that cannot be used, such as ``device_ids`` of several devices.

    Source: Kakishita and Hattori, equations 1-9.

    Example::

        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> for parameter, values in zip(net.parameters(), ([[1., 1.], [1., -1.]], [0., 0.], [[1., 2.]], [1.])):
        ...     _ = parameter.data.copy_(torch.tensor(values))
        >>> x = torch.tensor([[3., 1.]])            # hidden: 4 and 2; score: 1 * 4 + 2 * 2 + 1 = 9
        >>> LayerCAV(net, "1").attribute(x)         # 4/9 from each hidden unit, 1/9 from the bias
        tensor([[0.4444, 0.4444]])
        >>> LayerCAV(net, "0", normalize=None).attribute(x, return_convergence_delta=True)
        (tensor([[4., 4.]]), tensor([0.]))
        >>> squashed = torch.nn.Sequential(net, torch.nn.Sigmoid())
        >>> LayerCAV(squashed, "0.1", score="logit").attribute(x)   # the 9 before the sigmoid
        tensor([[0.4444, 0.4444]])
    """

    @overload
    def __init__(
        self: LayerCAV[OfLayer, torch.Tensor],
        forward_func: Callable[..., Any],
        layer: torch.nn.Module | str,
        device_ids: Sequence[int | str | torch.device] | None = None,
        *,
        rules: Rules = None,
        normalize: Normalize = "score",
        on_unknown: OnUnknown = "error",
        call: int | None = None,
        score: Score = "output",
        multiply_by_inputs: bool = True,
        output: Output = None,
    ) -> None: ...

    @overload
    def __init__(
        self: LayerCAV[list[OfLayer], list[torch.Tensor]],
        forward_func: Callable[..., Any],
        layer: Sequence[torch.nn.Module | str],
        device_ids: Sequence[int | str | torch.device] | None = None,
        *,
        rules: Rules = None,
        normalize: Normalize = "score",
        on_unknown: OnUnknown = "error",
        call: int | None = None,
        score: Score = "output",
        multiply_by_inputs: bool = True,
        output: Output = None,
    ) -> None: ...

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: torch.nn.Module | str | Sequence[torch.nn.Module | str],
        device_ids: Sequence[int | str | torch.device] | None = None,
        *,
        rules: Rules = None,
        normalize: Normalize = "score",
        on_unknown: OnUnknown = "error",
        call: int | None = None,
        score: Score = "output",
        multiply_by_inputs: bool = True,
        output: Output = None,
    ) -> None:
        forward_func = checks.check_model(forward_func)
        self._options = check_options(forward_func, rules, normalize, on_unknown, score, multiply_by_inputs, output)
        self.forward_func = forward_func
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        checks.check_device_ids(device_ids, forward_func, self._modules)
        GradientAttribution.__init__(self, forward_func)
        self._call = checks.check_call(call)

    @property
    def layer(self) -> Any:
        """The layer, or the list of layers, whose units are explained. Another layer may be assigned."""
        return self._modules if self._several else self._modules[0]

    @layer.setter
    def layer(self, layer: torch.nn.Module | str | Sequence[torch.nn.Module | str]) -> None:
        several = isinstance(layer, (list, tuple))
        found = [checks.find_layer(self.forward_func, one) for one in (layer if several else [layer])]  # type: ignore[union-attr]
        if not found:
            raise LayerError("layer is an empty list; expected at least one layer.")
        self._several = several
        self._names = [name for name, _ in found]
        self._modules = [module for _, module in found]

    def _repr_of_layers(self) -> list[str]:
        names = ", ".join(self._names)
        return [f"[{names}]" if self._several else names]

    @property
    def call(self) -> int | None:
        """Which call of a layer is explained; None for the only one."""
        return self._call

    @overload
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = False,
        return_convergence_delta: Literal[False] = False,
        grad_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> Found: ...

    @overload
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = False,
        *,
        return_convergence_delta: Literal[True],
        grad_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[Found, Deltas]: ...

    @overload
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = False,
        return_convergence_delta: Delta = False,
        grad_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> Any: ...

    @flat_in_wrappers
    @logs_usage
    @suspends_outer_attribution
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = False,
        return_convergence_delta: Delta = False,
        grad_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Contribution ratios of the units of the layer to the score of each sample.

        Args:
            inputs: a tensor of shape (N, ...) or a tuple of such tensors; finite numbers, on the device of the model.
                A subclass of tensors counts as the plain tensor, and the result is a plain tensor. Or a dict of inputs
                that the model takes by keyword, such as what a tokenizer returns.
            target: which output is the score, in any of Captum's forms: an index, a tuple of indices, or a list or 1-D
                tensor with one entry for each sample. Negative indices count from the end. None if the output is one
                score for each sample.
            additional_forward_args: further arguments of ``forward_func``, a tuple or a single argument. They have no
                contributions.
            attribute_to_layer_input: whether to explain the input of the layer instead of its output. If the same
                tensor also reaches the score on another way, such as a skip connection, that way is not counted here;
                Captum's own methods count it.
            relu_attributions: whether to set negative contributions to 0.
            attr_dim_summation: whether to sum dimension 1 (channels), which keeps size 1; this is the map of the paper.
            return_convergence_delta: whether to measure also what stays unexplained. With a list of layers,
                ``"joint"`` gives one delta for all of them together: parallel layers, such as the branches of a model
                with two towers, may leave nothing unexplained together although each of them alone does.
            grad_kwargs: passed on to :func:`torch.autograd.grad`. ``{"materialize_grads": True}`` gives zeros for a
                layer that the score does not depend on. ``{"create_graph": True}`` gives contributions that can be
                differentiated with respect to parameters and inputs, in networks of linear operations, ReLU, max
                pooling and batch norm. They have the derivatives of the operations: hooks and the backward passes of
                custom autograd functions change nothing.
            internal_batch_size: the largest number of samples in one forward pass, for batches that do not fit into
                memory at once; None for all samples. The results of the parts are concatenated. They are those of the
                whole batch if the model treats each sample alone. Inputs, lists of targets, and additional tensors
                whose first dimension is N are cut into parts; other additional arguments go to each part as they are.
            additional_forward_kwargs: further arguments of ``forward_func`` that it takes by keyword, a dict. They have
                no contributions.

        Returns:
            A tensor of the shape of the layer; a tuple of tensors if the layer gives several tensors; for a list of
            layers, a list of these. With ``return_convergence_delta``, a pair of the attributions and a delta of shape
            (N,), or one delta for each layer of a list. The delta is ``1 - ratios of the layer - shares of constants``,
            where the constants are those behind the layer; with ``normalize=None``, it is in units of the score. The
            delta is near 0 if every path to the score runs through the layer. Otherwise it tells what bypasses the
            layer. The tensors of a layer that gives several have one delta together. A ``"joint"`` delta is
            ``1 - ratios of all layers - shares of constants`` behind any of them, also of shape (N,).

        Raises:
            InputError, TargetError, LayerError, ModelError, CAVTypeError, UnsupportedOperationError: see
                :mod:`captum_cav.errors`. The model is left as it was.

        Example::

            >>> import torch
            >>> left, right = torch.nn.Identity(), torch.nn.Identity()
            >>> cav = LayerCAV(lambda x: left(x[:, 0]) + 3 * right(x[:, 1]), [left, right])
            >>> cav.attribute(torch.ones(1, 2), return_convergence_delta=True)
            ([tensor([0.2500]), tensor([0.7500])], [tensor([0.7500]), tensor([0.2500])])
            >>> cav.attribute(torch.ones(1, 2), return_convergence_delta="joint")[1]
            tensor([0.])
        """
        (result,) = self._attribute(
            inputs,
            [target],
            additional_forward_args,
            attribute_to_layer_input,
            relu_attributions,
            attr_dim_summation,
            return_convergence_delta,
            grad_kwargs,
            internal_batch_size,
            additional_forward_kwargs,
        )
        return result

    @suspends_outer_attribution
    def attribute_targets(
        self,
        inputs: Any,
        targets: Sequence[Any],
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = False,
        return_convergence_delta: Delta = False,
        grad_kwargs: dict[str, Any] | None = None,
        internal_batch_size: int | None = None,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Contribution ratios for several targets, by one forward pass and one backward pass for each target.

        Args:
            inputs: as for :meth:`attribute`.
            targets: a list of targets, each in any of the forms that :meth:`attribute` takes.
            additional_forward_args, attribute_to_layer_input, relu_attributions: as for :meth:`attribute`.
            attr_dim_summation, return_convergence_delta, grad_kwargs: as for :meth:`attribute`.
            internal_batch_size, additional_forward_kwargs: as for :meth:`attribute`.

        Returns:
            A list with what :meth:`attribute` returns for each target.

        Raises:
            CAVError: as for :meth:`attribute`.

        Example::

            >>> import torch
            >>> net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(2, 3))
            >>> maps = LayerCAV(net, "0").attribute_targets(torch.ones(1, 2), targets=[0, 2])
            >>> [tuple(ratios.shape) for ratios in maps]
            [(1, 2), (1, 2)]
        """
        return self._attribute(
            inputs,
            list(targets),
            additional_forward_args,
            attribute_to_layer_input,
            relu_attributions,
            attr_dim_summation,
            return_convergence_delta,
            grad_kwargs,
            internal_batch_size,
            additional_forward_kwargs,
        )

    @suspends_outer_attribution
    def explain_rules(
        self,
        inputs: Any,
        additional_forward_args: Any = None,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> RuleTable:
        """Which operation behind the layers met which rule, and why.

        Args:
            inputs, additional_forward_args, additional_forward_kwargs: as for :meth:`attribute`.

        Returns:
            One row for each operation, in the order of the forward pass, which prints as a table. A row names the
            module, the operation, the rule, the key of ``rules`` that chose the rule (or the default), and which of the
            tensors that enter the operation counted as constants.

        Raises:
            CAVError: as for :meth:`attribute`.

        Example::

            >>> import torch
            >>> from captum_cav import rules
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
            >>> LayerCAV(net, "0", rules={"2": rules.EpsilonRule(0.1)}).explain_rules(torch.ones(1, 2))
            module  operation  rule                      because of  constant
            1       tanh       pass_through              default
            2       linear     EpsilonRule(epsilon=0.1)  '2'
        """
        arguments = check_arguments(
            self.forward_func, inputs, additional_forward_args, additional_forward_kwargs=additional_forward_kwargs
        )
        passed = self._forward(arguments, [Site(module, False) for module in self._modules], with_rules=True)
        assert passed.trace.rules is not None
        return passed.trace.rules.table(self._options.rules.title)

    def _attribute(
        self,
        inputs: Any,
        targets: list[Any],
        additional_forward_args: Any,
        attribute_to_layer_input: bool,
        relu_attributions: bool,
        attr_dim_summation: bool,
        return_convergence_delta: Delta,
        grad_kwargs: dict[str, Any] | None,
        internal_batch_size: int | None,
        additional_forward_kwargs: Mapping[str, Any] | None,
    ) -> list[Any]:
        arguments = check_arguments(
            self.forward_func, inputs, additional_forward_args, targets, additional_forward_kwargs
        )

        def explain(part: Arguments) -> list[Any]:
            return self._explain(
                part,
                attribute_to_layer_input,
                relu_attributions,
                attr_dim_summation,
                return_convergence_delta,
                grad_kwargs,
            )

        explained: list[Any] = in_parts(arguments, internal_batch_size, explain)
        return explained

    def _explain(
        self,
        arguments: Arguments,
        attribute_to_layer_input: bool,
        relu_attributions: bool,
        attr_dim_summation: bool,
        return_convergence_delta: Delta,
        grad_kwargs: dict[str, Any] | None,
    ) -> list[Any]:
        """What :meth:`attribute` returns for each target, from one forward pass."""
        checks.check_delta(return_convergence_delta)
        joint = return_convergence_delta == "joint"
        sites = [Site(module, attribute_to_layer_input) for module in self._modules]
        passed = self._forward(
            arguments, sites, with_shares=bool(return_convergence_delta), with_rules=has_graph(grad_kwargs)
        )
        chosen = [chosen_tap(passed, site, name, self._call) for site, name in enumerate(self._names)]
        if joint:
            _refuse_behind_each_other(passed, chosen, self._names)
        results = []
        for number, target in enumerate(arguments.targets, 1):
            contributions, deltas = self._contributions(
                passed,
                select_passed(passed, target, self._options.score, chosen, arguments.part),
                chosen,
                [f"layer {name}" for name in self._names],
                with_delta=bool(return_convergence_delta),
                joint=joint,
                keep_graph=number < len(arguments.targets),
                grad_kwargs=grad_kwargs,
            )
            if has_graph(grad_kwargs):
                contributions = self._differentiable(passed, arguments, target, sites, self._call, grad_kwargs)
            layers = [
                _as_captum(tuple(as_picture(part, relu_attributions, attr_dim_summation) for part in parts))
                for parts in contributions
            ]
            attributions: Any = layers if self._several else layers[0]
            if return_convergence_delta:
                attributions = attributions, deltas if self._several and not joint else deltas[0]
            results.append(attributions)
        return results


def _refuse_behind_each_other(passed: Forward, chosen: Sequence[int], names: Sequence[str]) -> None:
    """Refuse a joint delta of layers of which one lies behind another: its contributions would count twice.

    Args:
        passed: what the forward pass left.
        chosen: the indices of the explained layers among what was tapped.
        names: of the layers, for the message.

    Raises:
        LayerError: names two such layers.
    """
    for name, index in zip(names, chosen, strict=True):
        for other_name, other in zip(names, chosen, strict=True):
            if passed.trace.taps[index].behind >> other & 1:
                raise LayerError(
                    f"layer {name} lies behind layer {other_name}, so in a joint delta the same contributions would "
                    "count twice; expected layers of which none lies behind another. Pass "
                    "return_convergence_delta=True for one delta for each layer."
                )


def _as_captum(parts: tuple[torch.Tensor, ...]) -> Attributions:
    """The contributions of one layer: a tensor, or a tuple if the layer gives several tensors."""
    return parts if len(parts) > 1 else parts[0]
