"""Contribution Analysis Visualization as Captum attributions: of layers, of inputs, of one neuron.

The method is Kakishita and Hattori's; equation numbers are their paper's. For every unit ``x_i`` of a layer, the
*contribution ratio* ``beta[x_i -> p]`` is the share of the score ``p`` that came from it. Chained from the score back
(equations 5 and 6), it equals ``x_i * c_i / p``, where the coefficient ``c`` is what ordinary autograd computes once
every operation is replaced by its surrogate (:mod:`captum_cav.rules`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from captum.attr import GradientAttribution, LayerAttribution, NeuronAttribution
from captum.log import log_usage

from captum_cav import _captum, checks, differentiable, presets, scores
from captum_cav.errors import CAVTypeError, LayerError, ModelError, OptionError, UnavailableError
from captum_cav.operations import TABLE
from captum_cav.propagation import forward, zeros
from captum_cav.propagation.hooks import Site
from captum_cav.propagation.overrides import Rulebook
from captum_cav.propagation.records import RuleTable
from captum_cav.propagation.reentrancy import suspends_outer_attribution
from captum_cav.rules.captum_rules import translate
from captum_cav.tensors import tensors_in

Normalize: TypeAlias = Literal["score", "abs"] | None
Attributions: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]
Rules: TypeAlias = Mapping[Any, Any] | str | None
_NORMALIZATIONS = ("score", "abs", None)
_UNKNOWNS = ("error", "gradient")
_SCORES = ("output", "log_odds")


class _Contributions(GradientAttribution):  # type: ignore[misc]
    """What the attributions share: options, one forward pass, ratios and their delta."""

    forward_func: Callable[..., Any]

    def _configure(self, rules: Rules, normalize: Normalize, on_unknown: str, score: scores.Score = "output") -> None:
        if normalize not in _NORMALIZATIONS:
            raise OptionError(f'normalize is {normalize!r}; expected "score", "abs" or None.')
        if on_unknown not in _UNKNOWNS:
            raise OptionError(f'on_unknown is {on_unknown!r}; expected "error" or "gradient".')
        if score not in _SCORES:
            raise OptionError(f'score is {score!r}; expected "output" or "log_odds".')
        self._rules = Rulebook(presets.find(rules), self.forward_func, TABLE, translate)
        self._score = score
        self._normalize = normalize
        self._on_unknown = on_unknown

    @property
    def multiplies_by_inputs(self) -> bool:
        """A contribution is an activation times its coefficient."""
        return True

    def has_convergence_delta(self) -> bool:
        """``return_convergence_delta`` is supported."""
        return True

    def compute_convergence_delta(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Not to be had afterwards: the shares of constants are measured in the backward pass itself.

        Raises:
            UnavailableError: always; pass ``return_convergence_delta=True`` to ``attribute`` instead.
        """
        raise UnavailableError(
            "the delta needs the shares of constants, which only the backward pass can measure; call "
            "attribute(..., return_convergence_delta=True)."
        )

    def _run(
        self,
        inputs: Any,
        additional_forward_args: Any,
        sites: Sequence[Site] = (),
        *,
        tap_inputs: bool = False,
        keep_carriers: bool = False,
        end_at_call: int | None = None,
        with_account: bool = False,
        explained: bool = False,
        audited: bool = False,
    ) -> forward.Forward:
        return forward.run(
            self.forward_func,
            checks.check_inputs(self.forward_func, inputs),
            _as_tuple(additional_forward_args),
            sites,
            forward.Request(
                rules=self._rules,
                on_unknown="note" if audited else self._on_unknown,
                tap_inputs=tap_inputs,
                keep_carriers=keep_carriers,
                end_at_call=end_at_call,
                with_shares=with_account,
                with_rules=explained,
                audited=audited,
            ),
        )

    @suspends_outer_attribution
    def audited(
        self,
        inputs: Any,
        target: Any,
        additional_forward_args: Any,
        sites: Sequence[Site],
        tap_inputs: bool,
    ) -> tuple[forward.Forward, torch.Tensor, torch.Tensor, torch.Tensor]:
        """A forward pass, and a backward pass from the scores in which each operation is compared.

        Returns:
            What the forward pass left; the scores, shape (N,); what the contributions of all that was tapped and the
            constants behind it leave of their sum; the sum of their absolute values. The last two are float64 scalars.
        """
        if tap_inputs:
            _check_floating(inputs)
        passed = self._run(
            inputs, additional_forward_args, sites, tap_inputs=tap_inputs, with_account=True, audited=True
        )
        with torch.enable_grad():
            values, constants = scores.select(checks.check_output(passed.output), target, self._score)
        if not values.requires_grad:
            raise ModelError(_independent("what is explained"))
        found = passed.coefficients(values, torch.ones_like(values), range(len(passed.trace.taps)), False)
        shares = passed.trace.shares.settle(len(passed.trace.taps))
        zeros_carry = passed.trace.shares.zeros_carry
        left = (values.detach() - constants).sum(dtype=torch.float64) - shares[0]
        absolute = torch.zeros_like(left)
        for value, part in zip(passed.trace.taps[0].values, found[0], strict=True):
            if part is not None:
                contributions = zeros.contributions(value, part, zeros_carry)
                left = left - contributions.sum(dtype=torch.float64)
                absolute = absolute + contributions.abs().sum(dtype=torch.float64)
        return passed, values.detach(), left, absolute

    def _scores(self, passed: forward.Forward, target: Any) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            output = checks.check_output(passed.output)
            values, constants = scores.select(output, target, self._score)
        checks.check_finite_results("the score is", values, self.forward_func, passed.args)
        if self._normalize is not None:
            checks.warn_near_zero(values, output)
        return values, constants

    def _differentiable(
        self,
        passed: forward.Forward,
        inputs: Any,
        target: Any,
        additional_forward_args: Any,
        sites: Sequence[Site],
        call: int | None,
        grad_kwargs: dict[str, Any] | None,
    ) -> list[tuple[torch.Tensor, ...]]:
        """The contributions of each site, or of the inputs where there is none, with the graph that they come from."""
        assert passed.trace.rules is not None
        differentiable.check(passed.trace.rules)
        additional = _as_tuple(additional_forward_args)
        given = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
        output, calls = differentiable.run(self.forward_func, given, additional, sites, not sites)
        with torch.enable_grad():
            values, _ = scores.select(checks.check_output(output), target, self._score)
            seeds = torch.ones_like(values)
            if self._normalize is not None:
                seeds = seeds / (values if self._normalize == "score" else values.abs())
        return differentiable.contributions(
            values, seeds, [of_site[call or 0] for of_site in calls], **grad_kwargs or {}
        )

    def _contributions(
        self,
        passed: forward.Forward,
        score: tuple[torch.Tensor, torch.Tensor],
        chosen: Sequence[int],
        names: Sequence[str],
        *,
        with_delta: bool,
        keep_graph: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> tuple[list[tuple[torch.Tensor, ...]], list[torch.Tensor]]:
        """Contributions of each chosen tap and, if asked for, what they and the constants leave unexplained.

        The score comes with the part of it that no output carries.
        """
        selected, constants = score
        # What is to have a graph is computed apart, see differentiable.py.
        grad_kwargs = {key: value for key, value in (grad_kwargs or {}).items() if key != "create_graph"}
        materialize = grad_kwargs.pop("materialize_grads", False)
        if not selected.requires_grad:
            if not materialize:
                raise ModelError(_independent(", ".join(names)))
            # All of it is constants: the backward pass starts, and reaches no layer.
            selected = selected + torch.zeros_like(selected).requires_grad_()
        values = selected.detach()
        seeds = torch.ones_like(values)
        scale = 1.0
        if self._normalize is not None:
            # Coefficients of half precision, a score over, would soon be too small or too large for it.
            scale = _scale_of(values) if values.itemsize < 4 else 1.0
            seeds = seeds * scale / (values if self._normalize == "score" else values.abs())
        # An operation may keep its samples in any dimension. What is linear in the seeds can be split by sample all
        # the same: a sample's part of a sum is its seed times the sum's derivative by that seed.
        split = with_delta and len(seeds) > 1
        if split:
            seeds.requires_grad_()
            grad_kwargs["create_graph"] = True
        with torch.enable_grad():
            coefficients = passed.coefficients(selected, seeds, chosen, keep_graph or split, **grad_kwargs)
            contributions = []
            zeros_carry = passed.trace.shares.zeros_carry
            for index, name, found in zip(chosen, names, coefficients, strict=True):
                if not materialize and all(part is None for part in found):
                    raise ModelError(_independent(name))
                contributions.append(
                    tuple(
                        torch.zeros_like(value) if part is None else zeros.contributions(value, part, zeros_carry)
                        for value, part in zip(passed.trace.taps[index].values, found, strict=True)
                    )
                )
            if bool(torch.isfinite(seeds).all()):
                for name, parts in zip(names, contributions, strict=True):
                    for part in parts:
                        checks.check_finite_results(
                            f"the contributions at {name} are", part, self.forward_func, passed.args
                        )
            deltas = []
            if with_delta:
                shares = passed.trace.shares.settle(len(passed.trace.taps))
                for index, parts in zip(chosen, contributions, strict=True):
                    total = shares[index].to(seeds.device)
                    for part in parts:
                        total = total + part.sum(dtype=torch.float64).to(seeds.device)
                    explained = total.reshape(1)
                    if split:
                        (by_seed,) = torch.autograd.grad(total + 0 * seeds.sum(), seeds, retain_graph=True)
                        explained = by_seed.double() * seeds.detach()
                    deltas.append(((values - constants) * seeds.detach() - explained).detach().to(values.dtype))
        if scale != 1.0:
            contributions = [tuple(part / scale for part in parts) for parts in contributions]
            deltas = [delta / scale for delta in deltas]
        return [tuple(part.detach() for part in parts) for parts in contributions], deltas


def _as_tuple(additional_forward_args: Any) -> tuple[Any, ...]:
    if additional_forward_args is None:
        return ()
    return additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)


def _scale_of(scores: torch.Tensor) -> float:
    """A power of two near the smallest score that is not 0, by which all may be divided."""
    sizes = scores.abs().float()
    sizes = sizes[sizes > 0]
    return float(2.0 ** sizes.min().log2().floor()) if sizes.numel() else 1.0


def _independent(name: str) -> str:
    return (
        f"the score does not depend on {name} by anything that carries contributions (it is computed before the layer, "
        "under torch.no_grad(), from detached tensors, or weighs only: gates and attention weights carry nothing)."
    )


class LayerCAV(LayerAttribution, _Contributions):  # type: ignore[misc]
    """Contribution ratios of the units of any layers: which parts gave the network its score.

    Nothing about the model is assumed, changed or retrained. All layers come out of one forward and one backward pass,
    and nothing before the first of them builds a graph.

    For networks of linear operations, ReLU and max pooling the ratios equal activation x gradient / score; elsewhere
    (tanh, GELU, gates, layer norm, attention, ...) they differ.

    Args:
        forward_func: the model, or any callable that returns scores of shape (N,) or (N, ...).
        layer: a module, its qualified name (where ``forward_func`` is a module), or a list of either.
        device_ids: accepted for Captum's signature; the forward pass runs where the model is.
        rules: how contributions flow, where not by the defaults: a preset as ``presets.gamma()`` or its name, or a
            mapping whose most specific key wins: a module, a qualified name or pattern (``"features.*"``), a type of
            module, a torch function; to a rule, several of which the first that governs an operation rules it, one of
            Captum's rules, or a function of a :class:`captum_cav.rules.Operation`. ``module.rule = ...`` is honoured.
        normalize: ``"score"``, the paper's ratios ``x * c / p``, whose signs turn round where the score is negative;
            ``"abs"``, the same divided by ``|p|``, so that positive always raised the score; None for contributions in
            units of the score, as LRP gives them.
        on_unknown: ``"error"`` refuses an operation without a rule; ``"gradient"`` warns and passes its gradient on.
        call: which call of a layer that the forward pass reaches several times: 0 for the first, -1 for the last.
        score: what is explained: ``"output"``, the target's output; ``"log_odds"``, that output less the log-sum-exp of
            all others: what speaks for the class rather than for any other.

    Raises:
        LayerError: for a layer that is not the model's; names near matches.

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
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: torch.nn.Module | str | Sequence[torch.nn.Module | str],
        device_ids: list[int] | None = None,
        *,
        rules: Rules = None,
        normalize: Normalize = "score",
        on_unknown: str = "error",
        call: int | None = None,
        score: scores.Score = "output",
    ) -> None:
        forward_func = checks.check_model(forward_func)
        self.forward_func = forward_func
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        GradientAttribution.__init__(self, forward_func)
        self._configure(rules, normalize, on_unknown, score)
        _check_call(call)
        self._call = call

    @property
    def layer(self) -> Any:
        """The layer, or the list of layers, whose units are explained; it may be set to another one."""
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

    @log_usage(part_of_slo=True)
    @suspends_outer_attribution
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = False,
        return_convergence_delta: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Contribution ratios of the layer's units to each sample's score.

        Args:
            inputs: a tensor of shape (N, ...) or a tuple of such; finite, on the model's device.
            target: which output is the score, in any of Captum's forms: an index, a tuple of indices, a list or 1-D
                tensor of one a sample; negative indices count from the end. None where the output is one score each.
            additional_forward_args: further arguments of ``forward_func``, a tuple or a single one; they do not carry.
            attribute_to_layer_input: whether to attribute to the layer's input instead of its output. What reaches the
                score by other uses of the same tensor, a skip connection say, is not counted; Captum's own methods
                count it.
            relu_attributions: whether to set negative contributions to 0.
            attr_dim_summation: whether to sum dimension 1 (channels), keeping it with size 1: the paper's map.
            return_convergence_delta: whether to measure, too, what stays unexplained.
            grad_kwargs: passed on to :func:`torch.autograd.grad`; ``{"materialize_grads": True}`` gives zeros for a
                layer that the score does not depend on, ``{"create_graph": True}`` contributions that can be
                differentiated by parameters and inputs, in networks of linear operations, ReLU, max pooling and batch
                norm.

        Returns:
            A tensor of the layer's shape, a tuple of them where the layer gives several tensors, a list of either for a
            list of layers. With ``return_convergence_delta`` a pair of that and, for each layer, a tensor of shape
            (N,): ``1 - ratios of the layer - shares of the constants behind it`` (in units of the score with
            ``normalize=None``), near 0 wherever the layer cuts the network, and elsewhere what bypasses the layer.

        Raises:
            InputError, TargetError, LayerError, ModelError, CAVTypeError, UnsupportedOperationError: see
                :mod:`captum_cav.errors`; the model is left as it was.
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
        return_convergence_delta: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Contribution ratios for several targets: one forward pass, and one backward pass a target.

        Args:
            inputs: as for :meth:`attribute`.
            targets: targets, each in any of the forms that :meth:`attribute` takes.
            additional_forward_args, attribute_to_layer_input, relu_attributions: as for :meth:`attribute`.
            attr_dim_summation, return_convergence_delta, grad_kwargs: as for :meth:`attribute`.

        Returns:
            A list with what :meth:`attribute` returns for each target.

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
        )

    @suspends_outer_attribution
    def explain_rules(self, inputs: Any, additional_forward_args: Any = None) -> RuleTable:
        """Which operation behind the layers met which rule, and why.

        Args:
            inputs, additional_forward_args: as for :meth:`attribute`.

        Returns:
            A row for each operation that ran, in order, with the module, the operation, the rule, the key of ``rules``
            that chose it or the default, and which of the tensors it takes were held constant; prints itself as a
            table.

        Example::

            >>> import torch
            >>> from captum_cav import rules
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
            >>> LayerCAV(net, "0", rules={"2": rules.EpsilonRule(0.1)}).explain_rules(torch.ones(1, 2))
            module  operation  rule                      because of  constant
            1       tanh       pass_through              default
            2       linear     EpsilonRule(epsilon=0.1)  '2'
        """
        sites = [Site(module, False) for module in self._modules]
        passed = self._run(inputs, additional_forward_args, sites, explained=True)
        assert passed.trace.rules is not None
        return passed.trace.rules.table()

    def _attribute(
        self,
        inputs: Any,
        targets: list[Any],
        additional_forward_args: Any,
        attribute_to_layer_input: bool,
        relu_attributions: bool,
        attr_dim_summation: bool,
        return_convergence_delta: bool,
        grad_kwargs: dict[str, Any] | None,
    ) -> list[Any]:
        sites = [Site(module, attribute_to_layer_input) for module in self._modules]
        again = bool((grad_kwargs or {}).get("create_graph"))
        passed = self._run(
            inputs, additional_forward_args, sites, with_account=return_convergence_delta, explained=again
        )
        chosen = [_choose(passed, site, name, self._call) for site, name in enumerate(self._names)]
        names = [f"layer {name}" for name in self._names]
        results = []
        for number, target in enumerate(targets, 1):
            contributions, deltas = self._contributions(
                passed,
                self._scores(passed, target),
                chosen,
                names,
                with_delta=return_convergence_delta,
                keep_graph=number < len(targets),
                grad_kwargs=grad_kwargs,
            )
            if again:
                contributions = self._differentiable(
                    passed, inputs, target, additional_forward_args, sites, self._call, grad_kwargs
                )
            layers = [
                _as_captum(tuple(_finished(part, relu_attributions, attr_dim_summation) for part in parts))
                for parts in contributions
            ]
            attributions: Any = layers if self._several else layers[0]
            if return_convergence_delta:
                results.append((attributions, deltas if self._several else deltas[0]))
            else:
                results.append(attributions)
        return results


class InputCAV(_Contributions):
    """Contribution ratios of the inputs themselves: the finest map.

    Args:
        forward_func: the model, or any callable that returns scores of shape (N,) or (N, ...).
        rules, normalize, on_unknown, score: as for :class:`LayerCAV`.

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
        on_unknown: str = "error",
        score: scores.Score = "output",
    ) -> None:
        forward_func = checks.check_model(forward_func)
        GradientAttribution.__init__(self, forward_func)
        self._configure(rules, normalize, on_unknown, score)

    @suspends_outer_attribution
    def explain_rules(self, inputs: Any, additional_forward_args: Any = None) -> RuleTable:
        """Which operation met which rule, and why: as :meth:`LayerCAV.explain_rules`, from the inputs on."""
        _check_floating(inputs)
        passed = self._run(inputs, additional_forward_args, tap_inputs=True, explained=True)
        assert passed.trace.rules is not None
        return passed.trace.rules.table()

    @log_usage(part_of_slo=True)
    @suspends_outer_attribution
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        attr_dim_summation: bool = False,
        return_convergence_delta: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Contribution ratios of each element of the inputs.

        Args:
            inputs: a floating-point tensor of shape (N, ...) or a tuple of such.
            target, additional_forward_args, attr_dim_summation, return_convergence_delta, grad_kwargs: as for
                :meth:`LayerCAV.attribute`.

        Returns:
            A tensor, or a tuple of tensors where ``inputs`` is a tuple, each of its input's shape; with
            ``return_convergence_delta`` a pair of that and the delta of shape (N,).

        Raises:
            CAVTypeError: for integer inputs, which carry nothing; attribute at the embedding layer instead.
        """
        _check_floating(inputs)
        again = bool((grad_kwargs or {}).get("create_graph"))
        passed = self._run(
            inputs, additional_forward_args, tap_inputs=True, with_account=return_convergence_delta, explained=again
        )
        (parts,), deltas = self._contributions(
            passed,
            self._scores(passed, target),
            [0],
            ["the inputs"],
            with_delta=return_convergence_delta,
            grad_kwargs=grad_kwargs,
        )
        if again:
            (parts,) = self._differentiable(passed, inputs, target, additional_forward_args, [], 0, grad_kwargs)
        parts = tuple(_finished(part, False, attr_dim_summation) for part in parts)
        attributions: Attributions = parts if isinstance(inputs, (tuple, list)) else parts[0]
        return (attributions, deltas[0]) if return_convergence_delta else attributions


class NeuronCAV(NeuronAttribution, _Contributions):  # type: ignore[misc]
    """Contribution ratios of the inputs to one neuron of a layer, instead of a class score.

    What runs behind the layer runs as ever, and needs no rules.

    Args:
        forward_func: the model or any callable.
        layer: a module or its qualified name.
        device_ids: accepted for Captum's signature.
        rules, normalize, on_unknown, call: as for :class:`LayerCAV`; "score" means the neuron's value.

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
        device_ids: list[int] | None = None,
        *,
        rules: Rules = None,
        normalize: Normalize = "score",
        on_unknown: str = "error",
        call: int | None = None,
    ) -> None:
        forward_func = checks.check_model(forward_func)
        self._name, module = checks.find_layer(forward_func, layer)
        NeuronAttribution.__init__(self, forward_func, module)
        GradientAttribution.__init__(self, forward_func)
        self.device_ids = device_ids
        _check_call(call)
        self._call = call
        self._configure(rules, normalize, on_unknown)

    @log_usage(part_of_slo=True)
    @suspends_outer_attribution
    def attribute(
        self,
        inputs: Any,
        neuron_selector: int | tuple[int | slice, ...] | Callable[..., torch.Tensor],
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
        return_convergence_delta: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Contribution ratios of each element of the inputs to a neuron's value.

        Args:
            inputs: a floating-point tensor of shape (N, ...) or a tuple of such.
            neuron_selector: which neuron, as in Captum: an index, a tuple of indices or slices behind the batch
                dimension (a slice sums its neurons), or a function of the layer's output.
            additional_forward_args, return_convergence_delta, grad_kwargs: as for :meth:`LayerCAV.attribute`.
            attribute_to_neuron_input: whether the neuron is one of the layer's input instead of its output.

        Returns:
            As :meth:`InputCAV.attribute`.

        Raises:
            LayerError: if the forward pass does not reach the layer.
        """
        _check_floating(inputs)
        site = Site(self.layer, attribute_to_neuron_input)
        passed = self._run(
            inputs,
            additional_forward_args,
            [site],
            tap_inputs=True,
            keep_carriers=True,
            # Which call is the last is not known in advance.
            end_at_call=None if (self._call or 0) < 0 else self._call or 0,
            with_account=return_convergence_delta,
        )
        index = _choose(passed, 0, self._name, self._call)
        kept = passed.carriers[passed.calls[0].index(index)]
        values = tuple(tensor for tensor in tensors_in(kept) if tensor.requires_grad)
        checks.check_neuron(neuron_selector, values)
        with torch.enable_grad():
            neuron = _captum.select_neuron(values, neuron_selector)
        checks.check_finite_results("the neuron's value is", neuron, self.forward_func, passed.args)
        if self._normalize is not None:
            checks.warn_near_zero(neuron, values[0])
        (parts,), deltas = self._contributions(
            passed,
            (neuron, torch.zeros_like(neuron.detach())),
            [0],
            ["the inputs"],
            with_delta=return_convergence_delta,
            grad_kwargs=grad_kwargs,
        )
        attributions: Attributions = parts if isinstance(inputs, (tuple, list)) else parts[0]
        return (attributions, deltas[0]) if return_convergence_delta else attributions


def _check_call(call: Any) -> None:
    if call is not None and (not isinstance(call, int) or isinstance(call, bool)):
        raise CAVTypeError(f"call is {call!r} ({type(call).__name__}); expected 0 for the first call, -1 for the last.")


def _choose(passed: forward.Forward, site: int, name: str, call: int | None) -> int:
    """The tap of the call of a layer that was asked for."""
    calls = passed.calls[site]
    if not calls:
        raise LayerError(f"layer {name} was not reached by the forward pass; pick one that this input runs through.")
    if call is None and len(calls) > 1:
        raise LayerError(
            f"layer {name} was reached {len(calls)} times; choose one with call=0 ... {len(calls) - 1} "
            "(-1 for the last)."
        )
    if not -len(calls) <= (call or 0) < len(calls):
        raise LayerError(f"layer {name} was reached {len(calls)} times; call={call} is out of range.")
    index = calls[call or 0]
    if not passed.trace.taps[index].values:
        raise CAVTypeError(
            f"layer {name} gave a {passed.trace.taps[index].kind}, in which no floating-point tensor was found; pick a "
            "layer whose units carry numbers, inside it or behind it."
        )
    return index


def _check_floating(inputs: Any) -> None:
    for tensor in inputs if isinstance(inputs, (tuple, list)) else (inputs,):
        if isinstance(tensor, (tuple, list, dict)):
            raise CAVTypeError(
                f"inputs holds a {type(tensor).__name__}; the inputs themselves are explained as a tensor or a tuple "
                "of tensors. Pass a function of those as forward_func, or use LayerCAV."
            )
        if isinstance(tensor, torch.Tensor) and not (tensor.is_floating_point() or tensor.is_complex()):
            raise CAVTypeError(
                f"inputs are {tensor.dtype}, which carry no contributions; use LayerCAV at the embedding layer, or "
                "pass floating-point inputs."
            )


def _finished(part: torch.Tensor, relu: bool, summed: bool) -> torch.Tensor:
    if summed:
        part = part.sum(1, keepdim=True)
    return part.relu() if relu else part


def _as_captum(parts: tuple[torch.Tensor, ...]) -> Attributions:
    return parts if len(parts) > 1 else parts[0]
