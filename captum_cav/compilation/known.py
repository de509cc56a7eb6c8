"""What a graph computes from parameters and buffers alone. A frozen recording computes this once."""

from __future__ import annotations

from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg

from captum_cav.compilation.graphs import OfBatch, RecordedGraph
from captum_cav.torch_graphs import below_autograd


def known_values(recorded: RecordedGraph) -> dict[Node, Any]:
    """The results that hang on no input of a graph.

    Tensors are left out if the graph returns them, or if an operation writes into them that is left out itself.

    Args:
        recorded: the graph.
    """
    values: dict[Node, Any] = dict(zip(recorded.inputs[-len(recorded.constants) :], recorded.constants, strict=False))
    known = _known(recorded, set(values))
    for node in known:
        args: Any = map_arg(node.args, values.__getitem__)
        kwargs: Any = map_arg(node.kwargs, values.__getitem__)
        with below_autograd():
            function: Any = recorded.functions.get(node, node.target)
            values[node] = function(*args, **kwargs)
    return {node: values[node] for node in known}


def _known(recorded: RecordedGraph, constants: set[Node]) -> list[Node]:
    group, nodes = recorded.memory.group, [node for node in recorded.graph.nodes if node.op != "placeholder"]
    unknown = {node for node in nodes if node.op == "output" or _hangs_on_the_batch(recorded.arguments[node])}
    while True:
        known: dict[Node, None] = {}
        for node in nodes:
            if node not in unknown and all(one in known or one in constants for one in node.all_input_nodes):
                known[node] = None
        # What an operation that is left out reads must not change later, because all that is known is computed before.
        in_use: set[Node] = set()
        read: set[Node] = set()
        for node in nodes:
            written = set(map(group, recorded.memory.written.get(node, ())))
            if node in known:
                in_use |= written & read
            else:
                in_use |= written
                read.update(map(group, node.all_input_nodes))
            if node.op == "output":
                in_use.update(map(group, node.all_input_nodes))
        changed = {node for node in known if group(node) in in_use}
        if not changed:
            return list(known)
        unknown |= changed


def _hangs_on_the_batch(argument: Any) -> bool:
    """Whether an argument contains a size that depends on the number of samples."""
    if isinstance(argument, dict):
        return any(map(_hangs_on_the_batch, argument.values()))
    if isinstance(argument, (list, tuple)) and not isinstance(argument, OfBatch):
        return any(map(_hangs_on_the_batch, argument))
    return isinstance(argument, OfBatch)
