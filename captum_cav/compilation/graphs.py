"""Recorded graphs without what they do not need: unused operations, aliases, and views that change nothing."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from captum_cav.errors import RecordingError
from captum_cav.tensors import is_same_memory
from captum_cav.torch_graphs import (
    aliased_arguments,
    below_autograd,
    direct_function,
    in_place_batch_norm,
    variant_with_out,
)
from captum_cav.torch_internals import Overload

_ALIASES = (torch.ops.aten.alias.default, torch.ops.aten.detach.default)


class _DifferenceError(Exception):
    """Two recordings differ by more than sizes."""


class OfBatch(NamedTuple):
    """A size that depends on the number ``n`` of samples: ``times * n + plus``."""

    times: int
    plus: int


class RecordedGraph:
    """A graph of aten operations, its inputs and the other tensors that it uses.

    Args:
        recorded: the graph as it was recorded. It is changed.
        inputs: tensors of the kinds that the graph was recorded with.

    Attributes:
        graph: the graph. Its inputs are the recorded inputs, and then ``constants``.
        constants: parameters, buffers and other tensors.
        functions: for each operation, the function of torch to call.
        with_out: for some operations, a function that writes the result into a tensor, and the name of that argument.
        memory: which tensors share memory.
        results: for each node that gives one tensor, the kind of the tensor.
        arguments: for each node, its arguments, in which sizes may be :class:`OfBatch`.
    """

    _order: list[int]

    def __init__(self, recorded: GraphModule, inputs: Sequence[torch.Tensor]) -> None:
        self.graph: Graph = recorded.graph
        self.constants = _constants_as_inputs(recorded)
        memory = self.memory = Memory(self.graph)
        _remove_unused(self.graph, memory)
        self.functions: dict[Node, Callable[..., Any]] = {}
        self.with_out: dict[Node, tuple[Callable[..., Any], str]] = {}
        self.results: dict[Node, Any] = {}
        same = self._try_out([*inputs, *self.constants])
        # Some operations change the shape of a tensor itself, and not of other tensors in the same memory.
        reshaped = {
            memory.group(node) for node, operation in operations(self.graph) if torch.Tag.inplace_view in operation.tags
        }
        self._remove_aliases({node for node in same if memory.group(node) not in reshaped})
        self._merge_outputs()
        self.arguments = {node: (node.args, node.kwargs) for node in self.graph.nodes}

    def _merge_outputs(self) -> None:
        """Return each tensor once, also if it was returned several times."""
        (output,) = (node for node in self.graph.nodes if node.op == "output")
        given: Any = output.args[0]
        different = list(dict.fromkeys(given))
        self._order = [different.index(node) for node in given]
        output.args = (different,)

    def hold_for_any_batch(self, other: RecordedGraph, samples: int, others: int) -> None:
        """Let sizes depend on the number of samples, as two recordings of the same computation tell.

        Args:
            other: the same computation for another number of samples.
            samples, others: the numbers of samples.

        Raises:
            RecordingError: if the graphs do different things.
        """
        twins: dict[Node, Node] = {}
        for node, twin in zip_longest(self.graph.nodes, other.graph.nodes):
            if node is None or twin is None or (node.op, node.target) != (twin.op, twin.target):
                raise _differs(node or twin, samples, others)
            twins[twin] = node
            try:
                self.arguments[node] = _joined(
                    (node.args, node.kwargs), (twin.args, twin.kwargs), twins, samples, others
                )
            except _DifferenceError as error:
                raise _differs(node, samples, others) from error

    def in_order(self, results: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors that the recorded function returned, from those that the graph returns."""
        return [results[place] for place in self._order]

    def _try_out(self, inputs: Sequence[torch.Tensor]) -> set[Node]:
        """Run the graph once, and choose the functions of torch.

        Returns:
            The operations whose result is an argument of theirs: in the same memory, with the same shape and strides.
        """
        values: dict[Node, Any] = dict(zip(self.inputs, inputs, strict=True))
        last = last_uses(self.graph)
        same: set[Node] = set()
        for node in self.graph.nodes:
            if node.op != "call_function":
                continue
            args = map_arg(node.args, values.__getitem__)
            kwargs = map_arg(node.kwargs, values.__getitem__)
            if isinstance(node.target, Overload):
                self.functions[node] = direct_function(node.target, args, kwargs)
                with below_autograd():
                    values[node] = self.functions[node](*args, **kwargs)
                if torch.Tag.pointwise in node.target.tags:
                    variant = variant_with_out(node.target)
                    if variant is not None:
                        operation, name = variant
                        kwargs = {**kwargs, name: values[node]}
                        self.with_out[node] = direct_function(operation, args, kwargs), name
                elif (in_place := in_place_batch_norm(node.target, args)) is not None:
                    self.with_out[node] = in_place, "out"
                    self.results[node] = _kind(values[node][0])
                shared, written = aliased_arguments(node.target, node.args, node.kwargs)
                is_view = shared and not written and isinstance(values[node], torch.Tensor)
                if is_view and is_same_memory(values[node], values[shared[0]]):
                    same.add(node)
            else:
                assert callable(node.target)
                values[node] = node.target(*args, **kwargs)
            if isinstance(values[node], torch.Tensor):
                self.results[node] = _kind(values[node])
            for done in last[node]:
                del values[done]
        return same

    def as_module(self, constants: Sequence[torch.Tensor] = (), results: int | None = None) -> GraphModule:
        """The graph as a module.

        Args:
            constants: numbers that become buffers of the module; without them, they are inputs of the module.
            results: how many of the tensors that the recorded function returned the module returns; None for all
                different ones.
        """
        graph, root, nodes = Graph(), torch.nn.Module(), {}
        for node, constant in zip(self.inputs[-len(self.constants) :], constants, strict=False):
            root.register_buffer(node.name, constant.detach())
            nodes[node] = graph.get_attr(node.name)
        different: Any = graph.graph_copy(self.graph, nodes)
        graph.output(different if results is None else tuple(different[place] for place in self._order[:results]))
        return GraphModule(root, graph)

    @property
    def inputs(self) -> list[Node]:
        """The inputs of the graph."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    def _remove_aliases(self, same: set[Node]) -> None:
        """Let operations use a tensor itself instead of another tensor in the same memory.

        Args:
            same: operations whose result is such another tensor.
        """
        for node in list(self.graph.nodes):
            if node in same:
                assert isinstance(node.target, Overload)
                (source, *_), _ = aliased_arguments(node.target, node.args, node.kwargs)
                # A result is not the tensor of the caller itself.
                if source.op == "placeholder" and any(user.op == "output" for user in node.users):
                    continue
                node.replace_all_uses_with(source)
                self.graph.erase_node(node)
                del self.functions[node]


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _joined(one: Any, other: Any, twins: dict[Node, Node], samples: int, others: int) -> Any:
    """The arguments of an operation for any number of samples, from those for two numbers.

    Raises:
        _DifferenceError: if they differ by more than sizes.
    """
    if isinstance(one, Node):
        if twins.get(other) is not one:
            raise _DifferenceError  # another tensor
        return one
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return [_joined(*pair, twins, samples, others) for pair in zip(one, other, strict=True)]
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: _joined(one[key], other[key], twins, samples, others) for key in one.keys() | other.keys()}
    if type(one) is not type(other):
        raise _DifferenceError  # another kind of value
    if one == other or (one != one and other != other):  # NaN equals nothing
        return one
    if type(one) is not int:
        raise _DifferenceError  # another value
    times, rest = divmod(other - one, others - samples)
    if rest:
        raise _DifferenceError  # a size that is no multiple
    return OfBatch(times, one - times * samples)


def _differs(node: Node, samples: int, others: int) -> RecordingError:
    return RecordingError(
        f"dynamic_batch=True needs the same operations for every number of samples, but {node.target} is not the same "
        f"for {samples} and for {others} samples; leave dynamic_batch out, for one recording for each size."
    )


def operations(graph: Graph) -> Iterator[tuple[Node, Overload]]:
    """The calls of aten operations, and the operations."""
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, Overload):
            yield node, node.target


def last_uses(graph: Graph) -> dict[Node, list[Node]]:
    """For each node, the nodes that nothing uses after it: itself, if nothing uses it."""
    seen: set[Node] = set()
    last: dict[Node, list[Node]] = defaultdict(list)
    for node in reversed(graph.nodes):
        for used in (*node.all_input_nodes, node):
            if used not in seen:
                seen.add(used)
                last[node].append(used)
    return last


def _constants_as_inputs(recorded: GraphModule) -> list[torch.Tensor]:
    """Turn the attributes of a graph into inputs, one for each tensor. Returns the tensors."""
    graph = recorded.graph
    found: dict[int, tuple[Node, torch.Tensor]] = {}
    after = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = operator.attrgetter(str(node.target))(recorded)
        if not node.users:
            graph.erase_node(node)
            continue
        if id(tensor) not in found:
            with graph.inserting_after(after):
                after = graph.placeholder(f"constant_{len(found)}")
            found[id(tensor)] = after, tensor
        node.replace_all_uses_with(found[id(tensor)][0])
        graph.erase_node(node)
    return [tensor for _, tensor in found.values()]


class Memory:
    """Which tensors of a graph share memory, and which operations write.

    Args:
        graph: the graph.

    Attributes:
        written: for each operation that writes, the tensors into which it writes.
    """

    def __init__(self, graph: Graph) -> None:
        self._parents: dict[Node, Node] = {}
        self.written: dict[Node, list[Node]] = {}
        for node in graph.nodes:
            if node.op != "call_function":
                continue
            if isinstance(node.target, Overload):
                shared, written = aliased_arguments(node.target, node.args, node.kwargs)
                if written:
                    self.written[node] = written
            else:
                shared = node.all_input_nodes
            for other in shared:
                self.join(node, other)

    def join(self, node: Node, other: Node) -> None:
        """Note that two tensors share memory."""
        if self.group(node) is not self.group(other):
            self._parents[self.group(other)] = self.group(node)

    def group(self, node: Node) -> Node:
        """One node that stands for all that share the memory of a node."""
        while node in self._parents:
            node = self._parents[node]
        return node


def _remove_unused(graph: Graph, memory: Memory) -> None:
    """Remove operations whose results nothing uses. A write counts as used if its memory is read later."""
    read: set[Node] = set()
    for node in reversed(list(graph.nodes)):
        if node.op == "placeholder":
            continue
        writes = any(memory.group(written) in read for written in memory.written.get(node, ()))
        if node.op != "output" and not node.users and not writes:
            graph.erase_node(node)
        else:
            read.update(map(memory.group, node.all_input_nodes))
