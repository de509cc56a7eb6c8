"""One recording: what an attribution computes for one kind of arguments, and what the results mean."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from captum_cav import checks
from captum_cav.attribution.backward import Propagated
from captum_cav.attribution.contributions import ContributionAttribution, Propagation
from captum_cav.attribution.input_checks import Arguments
from captum_cav.compilation.graphs import RecordedGraph
from captum_cav.compilation.recorder import Evidence, Recorder, noting_calls, only_recordable, recorder_of
from captum_cav.compilation.state import Constants, ModelState, check_hooks, modules_behind
from captum_cav.tensors import tensors_in
from captum_cav.torch_graphs import recorded_graph, tree_flatten, tree_unflatten
from captum_cav.torch_internals import tree_leaves, tree_map


@dataclass(frozen=True)
class Results:
    """What a pass leaves: what ``attribute`` returns, and what is to be checked. Tensors are numbered in order.

    Attributes:
        leaves: the parts that are no tensors; the number of a tensor in the place of the tensor.
        places: the places of tensors among the leaves.
        form: puts the leaves together.
        returned: how many of the tensors ``attribute`` returns. They come first.
    """

    leaves: list[Any]
    places: list[int]
    form: Any
    returned: int

    @staticmethod
    def of(result: Any, evidence: Sequence[Evidence]) -> tuple[Results, list[torch.Tensor]]:
        """The form of the results of a pass, and its tensors."""
        plain = [(one.what, one.names, one.selected, _fields(one.found)) for one in evidence]
        leaves, form = tree_flatten((result, plain))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        tensors = [leaves[place] for place in places]
        rest = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        return Results(rest, places, form, len(tree_leaves(result))), tensors

    def filled(self, tensors: Sequence[torch.Tensor]) -> tuple[Any, list[Evidence]]:
        """What the results of another pass mean."""
        leaves = self.leaves.copy()
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        result, plain = tree_unflatten(leaves, self.form)
        return result, [Evidence(what, names, selected, Propagated(*found)) for what, names, selected, found in plain]


def _fields(found: Propagated) -> tuple[Any, ...]:
    return tuple(vars(found).values())


class Recording:
    """What an attribution computes for one kind of arguments.

    Args:
        attribution: the attribution.
        arguments: checked arguments of this kind.
        options: the options of ``attribute``, in the order of its implementation.
        frozen: whether parameters and buffers are part of the recording.

    Attributes:
        graph: the aten operations.
        constants: parameters, buffers and other tensors.
        inputs: the tensors for which the recording was made.
        is_frozen: whether the numbers of parameters and buffers are part of the recording.

    Raises:
        RecordingError: for what cannot be recorded.
        CAVError: for what cannot be explained.
    """

    def __init__(
        self,
        attribution: ContributionAttribution,
        arguments: Arguments,
        options: Sequence[Any],
        *,
        frozen: bool,
        any_batch: bool = False,
    ) -> None:
        self._attribution = attribution
        self._options = options
        self.is_frozen = frozen
        self.is_for_any_batch = any_batch
        recorder = recorder_of(attribution)
        called: dict[torch.nn.Module, None] = {}
        with noting_calls(called):
            _, evidence = recorder.explain(arguments._replace(additional=checks.copied(arguments.additional)), options)
        self._one_by_one = recorder.one_by_one = bool(recorder.one_by_one)
        modules = modules_behind(attribution.forward_func, called)
        check_hooks(attribution.forward_func, modules)
        self._state = ModelState(modules)
        # The position of a score is known when the shape of the output is known.
        self._outputs = [
            None if target is None else (tuple(one.selected.output.shape[1:]), one.selected.output.device)
            for target, one in zip(arguments.targets, evidence, strict=False)
        ]
        self.inputs = self.tensors_of(arguments)
        self.graph, self._results = self._recorded(recorder, arguments, modules)
        if any_batch:
            samples = count_samples(arguments)
            larger, _ = self._recorded(recorder, with_samples(arguments, samples + 1), modules)
            self.graph.hold_for_any_batch(larger, samples, samples + 1)
        self._state.settle()
        self.constants = Constants(self.graph.constants, modules, frozen)

    def _recorded(
        self, recorder: Recorder, arguments: Arguments, modules: Sequence[torch.nn.Module]
    ) -> tuple[RecordedGraph, Results]:
        """The graph for some arguments, and what its results mean."""
        arguments = arguments._replace(additional=checks.copied(arguments.additional))
        count = len(_tensors_given(arguments))
        found: list[Results] = []

        def pure(*tensors: torch.Tensor) -> list[torch.Tensor]:
            given = iter(tensors)
            inputs, additional = tree_map(
                lambda leaf: next(given) if isinstance(leaf, torch.Tensor) else leaf,
                (arguments.inputs, arguments.additional),
            )
            targets = [None if output is None else checks.Positions(next(given)) for output in self._outputs]
            kept = [*tensors[count:], *tensors_in(list(additional))]
            kept += [tensor for module in modules for tensor in [*module.parameters(False), *module.buffers(False)]]
            with only_recordable(recorder.forward_func, kept):
                given_now = arguments._replace(inputs=inputs, additional=additional, targets=targets)
                form, results = Results.of(*recorder.explain(given_now, self._options))
            found.append(form)
            return [tensor.detach() for tensor in results]

        inputs = self.tensors_of(arguments)
        graph = RecordedGraph(recorded_graph(pure, inputs), inputs)
        (results,) = found
        return graph, results

    def release(self) -> None:
        """Forget the tensors for which the recording was made."""
        self._forms = [(tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in self.inputs]
        self.inputs = []

    def examples(self) -> list[torch.Tensor]:
        """Tensors of the shapes, strides and types for which the recording was made."""
        return [
            torch.empty_strided(shape, stride, dtype=dtype, device=device).zero_()
            for shape, stride, dtype, device in self._forms
        ]

    @property
    def count_results(self) -> int:
        """How many tensors ``attribute`` returns."""
        return self._results.returned

    def tensors_of(self, arguments: Arguments) -> list[torch.Tensor]:
        """The inputs of the graph: the tensors among the arguments, and the positions of the targets."""
        tensors = _tensors_given(arguments)
        samples = count_samples(arguments)
        first_sample = arguments.part.start if arguments.part is not None else 0
        for target, output in zip(arguments.targets, self._outputs, strict=False):
            if output is not None:
                shape, device = output
                tensors.append(torch.tensor(checks.positions((samples, *shape), target, first_sample), device=device))
        return tensors

    def is_current(self) -> bool:
        """Whether the model is as it was, except for the numbers of its tensors."""
        return self._state.is_same()

    def reference(self, arguments: Arguments) -> list[torch.Tensor]:
        """What the results are without a recording."""
        recorder = recorder_of(self._attribution)
        recorder.one_by_one = self._one_by_one
        arguments = arguments._replace(additional=checks.copied(arguments.additional))
        _, tensors = Results.of(*recorder.explain(arguments, self._options))
        return tensors

    def explained(self, arguments: Arguments, tensors: Sequence[torch.Tensor]) -> Any:
        """What ``attribute`` returns, after all checks that read results on the host.

        Args:
            arguments: the arguments.
            tensors: what the graph returned.

        Returns:
            None if the deltas of the samples do not add up, so that another way to compute the deltas is needed.
        """
        result, evidence = self._results.filled(tensors)
        attribution = self._attribution
        called = arguments.called(attribution.forward_func)
        rerun = functools.partial(called, *arguments.inputs, *arguments.additional)
        for one in evidence:
            selected = one.selected
            if arguments.part is not None:
                selected = selected._replace(first_sample=arguments.part.start)
            propagation = Propagation(_no_pass, one.what, selected, one.names, rerun)
            propagation.check_scores(attribution._options.normalize, attribution.forward_func)
            if not propagation.is_separate(one.found):
                return None
            propagation.check_contributions(one.found, attribution.forward_func)
        return result


def count_samples(arguments: Arguments) -> int:
    """The number of samples: the first dimension of the first input."""
    return int(_tensors_given(arguments)[0].shape[0])


def with_samples(arguments: Arguments, count: int) -> Arguments:
    """Arguments of the same kind with another number of samples: the same samples again and again.

    Args:
        arguments: the arguments. A tensor among them has the samples if its first dimension is that of the first input.
        count: how many samples are wanted.
    """
    samples = count_samples(arguments)
    rows = [row % samples for row in range(count)]

    def taken(leaf: Any) -> Any:
        return leaf.detach()[rows] if has_samples(leaf, samples) else leaf

    inputs, additional = tree_map(taken, (arguments.inputs, arguments.additional))
    targets = [[target[row] for row in rows] if isinstance(target, list) else target for target in arguments.targets]
    return arguments._replace(inputs=inputs, additional=additional, targets=targets)


def has_samples(leaf: Any, samples: int) -> bool:
    """Whether an argument has one entry for each sample."""
    return isinstance(leaf, torch.Tensor) and leaf.shape[:1] == (samples,)


def _no_pass(**options: Any) -> Propagated:
    raise NotImplementedError  # The backward pass was recorded.


def _tensors_given(arguments: Arguments) -> list[torch.Tensor]:
    leaves = tree_leaves((arguments.inputs, arguments.additional))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
