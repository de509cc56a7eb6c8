"""Operations that write their result into the memory of an argument that nothing uses any more.

Only operations that compute each number from the numbers at the same place do this: the numbers stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

from torch.fx import Node

from captum_cav.compilation.graphs import RecordedGraph, operations
from captum_cav.torch_graphs import aliased_arguments


class Reused(NamedTuple):
    """Where an operation writes its result.

    Attributes:
        function: the function of torch that takes a tensor for its result.
        name: of that argument.
        tensor: the tensor.
    """

    function: Callable[..., Any]
    name: str
    tensor: Node


def reused_memory(recorded: RecordedGraph, known: Container[Node] = ()) -> dict[Node, Reused]:
    """The operations of a graph that may write into an argument, and the argument.

    Args:
        recorded: the graph.
        known: results that are not computed anew in each run.
    """
    memory, order = recorded.memory, {node: place for place, node in enumerate(recorded.graph.nodes)}
    last: dict[Node, int] = {}
    for node in recorded.graph.nodes:
        group = memory.group(node)
        # The memory of the caller's tensors, and of what is known, is in use for ever.
        uses = [len(order)] if node.op == "placeholder" or node in known else [order[user] for user in node.users]
        last[group] = max(last.get(group, 0), *uses, order[node])
    found: dict[Node, Reused] = {}
    for node, operation in operations(recorded.graph):
        if node not in recorded.with_out or aliased_arguments(operation, node.args, node.kwargs)[0]:
            continue
        group = memory.group(node)
        for argument in _candidates(recorded, node):
            if last[memory.group(argument)] == order[node]:
                found[node] = Reused(*recorded.with_out[node], argument)
                until = max(last[group], last[memory.group(argument)])
                memory.join(node, argument)
                last[memory.group(node)] = until
                break
    return found


def _candidates(recorded: RecordedGraph, node: Node) -> Sequence[Node]:
    """The arguments of the kind of the result that share no memory with the other arguments."""
    memory, given = recorded.memory, node.all_input_nodes
    groups = [memory.group(argument) for argument in given]
    return [
        argument
        for argument, group in zip(given, groups, strict=True)
        if groups.count(group) == 1 and recorded.results.get(argument) == recorded.results.get(node) is not None
    ]
