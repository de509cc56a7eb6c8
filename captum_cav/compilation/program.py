"""A graph of aten operations as one Python function, in which each tensor is freed after its last use."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from captum_cav.compilation.graphs import OfBatch, RecordedGraph, last_uses
from captum_cav.compilation.reuse import reused_memory


def as_function(
    recorded: RecordedGraph, known: Mapping[Node, Any] | None = None
) -> Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]:
    """A function that runs a graph: it takes the inputs and the constants in one list, and returns a list of tensors.

    Args:
        recorded: the graph.
        known: results that are known already, so that the function does not compute them.
    """
    writer = _Writer(recorded, known or {})
    source = writer.source()
    namespace = writer.names
    exec(compile(source, "<recorded attribution>", "exec"), namespace)  # noqa: S102 - the source is written here
    function: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]] = namespace["run"]
    return function


class _Writer:
    """Writes the source of a function that runs a graph.

    Attributes:
        names: what the source refers to besides its own variables.
    """

    def __init__(self, recorded: RecordedGraph, known: Mapping[Node, Any]) -> None:
        self._recorded = recorded
        self._known = known
        self._reused = reused_memory(recorded, known)
        self._variables: dict[Node, str] = {}
        self._objects: dict[Any, str] = {}
        self.names: dict[str, Any] = {}

    def source(self) -> str:
        """The source."""
        graph = self._recorded.graph
        last = last_uses(graph)
        inputs = self._recorded.inputs
        for number, node in enumerate(graph.nodes):
            self._variables[node] = f"v{number}"
        names = ", ".join(self._variables[node] for node in inputs)
        lines = [f"def run(inputs):\n {names}, = inputs\n inputs = None\n n = {self._variables[inputs[0]]}.shape[0]"]
        for node in graph.nodes:
            if node.op == "output":
                lines.append(f" return {self._written(list(node.args[0]))}")
                break
            if node in self._known:
                continue
            if node.op == "call_function":
                lines.append(f" {self._variables[node]} = {self._call(node)}")
            unneeded = [self._variables[one] for one in last[node] if one not in self._known]
            if unneeded:
                lines.append(" " + " = ".join(unneeded) + " = None")
        return "\n".join(lines) + "\n"

    def _call(self, node: Node) -> str:
        if node.target is operator.getitem:
            source, index = self._recorded.arguments[node][0]
            return f"{self._written(source)}[{index}]"
        function, (given, kwargs) = self._recorded.functions[node], self._recorded.arguments[node]
        if node in self._reused:
            function, kwargs = (
                self._reused[node].function,
                {**kwargs, self._reused[node].name: self._reused[node].tensor},
            )
        args = [self._written(argument) for argument in given]
        args += [f"{name}={self._written(argument)}" for name, argument in kwargs.items()]
        return f"{self._named(function, getattr(function, '__name__', 'operation'))}({', '.join(args)})"

    def _written(self, value: Any) -> str:
        if isinstance(value, Node):
            return self._named(self._known[value], "known") if value in self._known else self._variables[value]
        if isinstance(value, OfBatch):
            return f"{value.times} * n + {value.plus}"
        if isinstance(value, (list, tuple)):
            if any(isinstance(item, Node) for item in value):
                return f"[{', '.join(map(self._written, value))}]"
            # A tuple of numbers is made once, a list in each call.
            return "(" + "".join(f"{self._written(item)}, " for item in value) + ")"
        if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
            return repr(value)
        return self._named(value, "value")

    def _named(self, value: Any, name: str) -> str:
        key = (type(value), value)
        if key not in self._objects:
            self._objects[key] = f"{name}_{len(self._objects)}"
            self.names[self._objects[key]] = value
        return self._objects[key]
