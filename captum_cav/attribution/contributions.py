"""What the attributions share: Captum's interface, the forward pass, and the way from scores to contributions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from captum.attr import GradientAttribution
from captum.log import log_usage

from captum_cav import checks
from captum_cav.attribution.backward import Propagated, propagate
from captum_cav.attribution.differentiable import contributions_with_graph
from captum_cav.attribution.input_checks import Arguments
from captum_cav.attribution.options import Normalize, Options
from captum_cav.attribution.result_checks import check_contributions, check_scores, samples_are_separate
from captum_cav.attribution.scores import SelectedScores, select_target
from captum_cav.attribution.squashing import squashing_of
from captum_cav.errors import CAVTypeError, UnavailableError, UnsupportedOperationError
from captum_cav.operations import TABLE
from captum_cav.propagation.forward import Forward, Request, run
from captum_cav.propagation.hooks import Site

Attributions: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]
_NOTED_OUTPUTS: ContextVar[list[torch.Tensor] | None] = ContextVar("_NOTED_OUTPUTS", default=None)


@contextmanager
def noting_outputs() -> Iterator[list[torch.Tensor]]:
    """A context that notes the outputs from which attributions select their scores, so that no pass is run for them.

    Yields:
        For each target that is explained in the context, all outputs of the model, or the numbers before its last
        squashing function if the score is a logit. A call that fails leaves outputs, too.
    """
    noted: list[torch.Tensor] = []
    before = _NOTED_OUTPUTS.set(noted)
    try:
        yield noted
    finally:
        _NOTED_OUTPUTS.reset(before)


@dataclass(frozen=True)
class Propagation:
    """A backward pass from scores to layers, and what messages about its results name.

    Attributes:
        back: runs the backward pass, see :func:`captum_cav.attribution.backward.propagate`.
        what: what the scores are, with a verb.
        selected: the scores that are explained.
        names: of the explained layers.
        rerun: runs the model once more with the same arguments.
    """

    back: Callable[..., Propagated]
    what: str
    selected: SelectedScores
    names: Sequence[str]
    rerun: Callable[[], Any]

    def run(self, with_delta: bool) -> tuple[Propagated, bool]:
        """What the backward pass finds, and whether each sample needed a backward pass of its own for its delta.

        Args:
            with_delta: whether the pass measures what stays unexplained.
        """
        try:
            found = self.back()
            if self.is_separate(found):
                return found, False
        except RuntimeError:
            if not with_delta:
                raise
        return self.back(one_by_one=True), True

    def is_separate(self, found: Propagated) -> bool:
        """Whether the deltas of all samples add up to the delta of the batch. It is read on the host."""
        return samples_are_separate(found)

    def check_scores(self, normalize: Normalize, model: Callable[..., Any]) -> None:
        """Refuse scores that are not finite, and warn about scores that make ratios hard to read."""
        noted = _NOTED_OUTPUTS.get()
        if noted is not None:
            noted.append(self.selected.output.detach())
        check_scores(self.what, self.selected, normalize, model, self.rerun)

    def check_contributions(self, found: Propagated, model: Callable[..., Any]) -> None:
        """Refuse layers that the scores do not depend on, and contributions that are not finite."""
        check_contributions(found, self.names, model, self.rerun, self.selected.first_sample)


_Attribute = TypeVar("_Attribute", bound=Callable[..., Any])


def logs_usage(attribute: _Attribute) -> _Attribute:
    """Captum's ``log_usage``, which keeps the signature, so that editors and type checkers know the parameters."""
    logged: _Attribute = log_usage(part_of_slo=True)(attribute)
    return logged


class ContributionAttribution(GradientAttribution):  # type: ignore[misc]
    """An attribution method that gives contributions; :class:`LayerCAV` and others derive from it."""

    _options: Options

    def __repr__(self) -> str:
        options = self._options
        shown = [getattr(self._forward_func, "__name__", None) or type(self._forward_func).__name__]
        shown += self._repr_of_layers()
        shown += [f"rules={options.rules.name!r}", f"normalize={options.normalize!r}"]
        if options.function is not None or options.score != "output":
            shown.append(f"score={options.function or options.score!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_of_layers(self) -> list[str]:
        """What is explained instead of the inputs, for ``repr``."""
        return []

    @property
    def forward_func(self) -> Callable[..., Any]:
        """The model. Another model may be assigned, if the rules for modules fit it."""
        return self._forward_func

    @forward_func.setter
    def forward_func(self, forward_func: Callable[..., Any]) -> None:
        forward_func = checks.check_model(forward_func)
        self._options.rules.check_model(forward_func)
        self._forward_func = forward_func

    @property
    def options(self) -> Options:
        """The checked options, such as rules, ``normalize``, ``on_unknown`` and the score."""
        return self._options

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether the attribution gives contributions, which are activations times coefficients. See the options."""
        return self._options.multiply_by_inputs

    def has_convergence_delta(self) -> bool:
        """True: ``attribute`` supports ``return_convergence_delta``."""
        return True

    def compute_convergence_delta(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Not available: only the backward pass can measure the shares of constants.

        Raises:
            UnavailableError: always; pass ``return_convergence_delta=True`` to ``attribute`` instead.
        """
        raise UnavailableError(
            "the delta needs the shares of constants, which only the backward pass can measure; call "
            "attribute(..., return_convergence_delta=True)."
        )

    def _forward(
        self,
        arguments: Arguments,
        sites: Sequence[Site] = (),
        *,
        tap_inputs: bool = False,
        embeds: Callable[[torch.nn.Module], bool] | None = None,
        keep_carriers: bool = False,
        end_at_call: int | None = None,
        with_shares: bool = False,
        with_rules: bool = False,
    ) -> Forward:
        """The forward pass. The options are those of :class:`captum_cav.propagation.forward.Request`."""
        called = arguments.called(self.forward_func)
        return run(
            self.forward_func,
            arguments.inputs,
            arguments.additional,
            sites,
            Request(
                table=TABLE,
                rules=self._options.rules,
                called=called,
                scored=self._options.scored(called),
                on_unknown=self._options.on_unknown,
                tap_inputs=tap_inputs,
                embeds=embeds,
                keep_carriers=keep_carriers,
                end_at_call=end_at_call,
                with_shares=with_shares,
                with_rules=with_rules,
            ),
        )

    def _contributions(
        self,
        passed: Forward,
        selected: SelectedScores,
        chosen: Sequence[int],
        names: Sequence[str],
        *,
        what: str = "the score is",
        with_delta: bool,
        joint: bool = False,
        keep_graph: bool = False,
        grad_kwargs: dict[str, Any] | None,
    ) -> tuple[list[tuple[torch.Tensor, ...]], list[torch.Tensor]]:
        """The backward pass, and then all checks that read its results.

        Args:
            passed: what the forward pass left.
            selected: the scores that are explained.
            chosen: the indices of the explained layers among what was tapped.
            names: of the explained layers, for messages.
            what: what the scores are, with a verb, for messages.
            with_delta: whether to measure what stays unexplained.
            joint: whether there is one delta for all explained layers together, instead of one for each.
            keep_graph: whether another backward pass will follow.
            grad_kwargs: passed on to :func:`torch.autograd.grad`.

        Returns:
            For each explained layer, the contributions of each of its tensors; and the deltas, each of shape (N,), if
            ``with_delta``.
        """
        normalize = self._options.normalize
        back = functools.partial(
            propagate,
            passed,
            selected,
            chosen,
            normalize=normalize,
            multiply_by_inputs=self._options.multiply_by_inputs,
            with_delta=with_delta,
            joint=joint,
            keep_graph=keep_graph,
            grad_kwargs=grad_kwargs,
        )
        found = self._checked(Propagation(back, what, selected, names, passed.rerun), with_delta)
        return found.unscaled()

    def _checked(self, propagation: Propagation, with_delta: bool) -> Propagated:
        """Run a backward pass, and check what the pass finds. A recording of the passes reads no number instead.

        Args:
            propagation: the backward pass, and what its messages name.
            with_delta: whether the pass measures what stays unexplained.
        """
        try:
            found, _ = propagation.run(with_delta)
        finally:
            # Also where the backward pass fails: a score that is not finite may be why, and is the better message.
            propagation.check_scores(self._options.normalize, self.forward_func)
        propagation.check_contributions(found, self.forward_func)
        return found

    def _differentiable(
        self,
        passed: Forward,
        arguments: Arguments,
        target: Any,
        sites: Sequence[Site],
        call: int | None,
        grad_kwargs: dict[str, Any] | None,
    ) -> list[tuple[torch.Tensor, ...]]:
        """The contributions of each site, or of the inputs if there is no site, with their graph."""
        assert passed.trace.rules is not None
        if self._options.score != "output" and squashing_of(passed.output, passed.trace.run) is not None:
            raise UnsupportedOperationError(
                "create_graph=True cannot look for what comes before a squashing function, as "
                f'score="{self._options.score}" asks; let forward_func return the numbers before the function.'
            )
        return contributions_with_graph(
            self._options.scored(arguments.called(self.forward_func)),
            arguments,
            sites,
            call or 0,
            passed.trace.rules,
            lambda output: select_target(checks.check_output(output), target, self._options.score).values,
            self._options.normalize,
            self._options.multiply_by_inputs,
            grad_kwargs or {},
        )


def has_graph(grad_kwargs: dict[str, Any] | None) -> bool:
    """Whether contributions with a graph are asked for, which can be differentiated themselves."""
    return bool((grad_kwargs or {}).get("create_graph"))


def chosen_tap(passed: Forward, site: int, name: str, call: int | None) -> int:
    """The index of the tapped call of a layer.

    Args:
        passed: what the forward pass left.
        site: the number of the layer among the sites.
        name: of the layer, for messages.
        call: which call of the layer, or None for the only one.

    Raises:
        LayerError: if there is no such call.
        CAVTypeError: if the layer gives no floating-point tensor.
    """
    calls = passed.calls[site]
    index = calls[checks.choose_call(name, len(calls), call)]
    if not passed.trace.taps[index].values:
        raise CAVTypeError(
            f"layer {name} gave a {passed.trace.taps[index].kind}, in which no floating-point tensor was found; pick a "
            "layer whose units carry numbers, inside it or behind it."
        )
    return index


def as_picture(part: torch.Tensor, relu: bool, summed: bool) -> torch.Tensor:
    """Contributions of shape (N, C, ...) as the options of ``attribute`` ask for them.

    Args:
        part: the contributions.
        relu: whether to set negative contributions to 0.
        summed: whether to sum dimension 1, which keeps size 1.
    """
    if summed:
        part = part.sum(1, keepdim=True)
    return part.relu() if relu else part
