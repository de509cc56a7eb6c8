"""The part of the backward pass that several scores have in common.

The scores of a causal language model stand in different rows of the logits. Behind the last mixing of tokens, each
score uses a row of its own in each tensor. So one backward pass gives the coefficients of all scores there. Only what
is in front of that place needs a pass for each score.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import GradientEdge

from captum_cav.propagation.forward import Forward
from captum_cav.torch_internals import batched

# A trial costs about two backward passes of the common part. With fewer scores nothing is won.
_FEWEST = 8


class Start(NamedTuple):
    """Where the backward passes of several scores begin.

    Attributes:
        at: the scores, or a place in the graph that every way from the scores to the layers passes.
        coefficients: the coefficients there of all scores together.
        owner: the number of the score that each slice of the coefficients belongs to; broadcasts to them.
    """

    at: torch.Tensor | GradientEdge
    coefficients: torch.Tensor
    owner: torch.Tensor

    def seeds(self, first: int, stop: int) -> torch.Tensor:
        """The coefficients of some of the scores, each with zeros where other scores have theirs."""
        numbers = torch.arange(first, stop, device=self.owner.device).view(-1, *[1] * self.owner.dim())
        return self.coefficients * (self.owner == numbers)


def batched_grad(
    at: torch.Tensor | GradientEdge, edges: Sequence[GradientEdge], seeds: torch.Tensor
) -> list[torch.Tensor | None]:
    """The gradients for several rows of seeds, by one backward pass.

    Args:
        at: where the pass begins.
        edges: where it ends.
        seeds: shape (K, ...), for each pass the coefficients at the beginning.

    Returns:
        For each edge, its gradients of shape (K, ...). None if the beginning does not depend on the edge.

    Raises:
        RuntimeError: for a backward pass that torch cannot batch.
    """
    of_all = batched(lambda seed: torch.autograd.grad(at, edges, seed, retain_graph=True, allow_unused=True))
    return list(of_all(seeds))


def common_start(passed: Forward, scores: torch.Tensor, chosen: Sequence[int]) -> Start:
    """The place nearest to the layers up to which one backward pass serves all scores.

    At a place, two passes are compared: one for the sum of all scores, and one for a sum in which each score has
    another weight. If each slice of the second is that of the first times the weight of one score, no slice belongs to
    two scores, up to rounding.

    Args:
        passed: what the forward pass left.
        scores: shape (K,), with their graph.
        chosen: the indices of the explained layers among what was tapped.
    """
    start = Start(scores, torch.ones_like(scores), torch.arange(len(scores), device=scores.device))
    if len(scores) < _FEWEST or scores.itemsize < 4 or scores.grad_fn is None:
        return start
    ends = {edge.node for index in chosen for edge in passed.trace.taps[index].edges}
    # The weights differ, and no weight is the mean of its neighbours.
    weights = (1 + torch.arange(len(scores), dtype=scores.dtype, device=scores.device) / len(scores)).sqrt()
    at: torch.Tensor | GradientEdge = scores
    pair = torch.stack([torch.ones_like(weights), weights])
    try:
        for edge in _passages(scores.grad_fn, ends):
            (found,) = batched_grad(at, [edge], pair)
            assert found is not None
            pair = found
            owner = _owner(pair[0], pair[1], weights)
            if owner is None:
                return start
            at, start = edge, Start(edge, pair[0], owner)
    except RuntimeError:
        pass  # A backward pass that torch cannot batch.
    return start


def _owner(plain: torch.Tensor, weighted: torch.Tensor, weights: torch.Tensor) -> torch.Tensor | None:
    """The score to which each slice along one dimension belongs. None if a slice belongs to several scores."""
    for dim in range(plain.dim()):
        if plain.shape[dim] < len(weights):
            continue
        others = tuple(other for other in range(plain.dim()) if other != dim)
        size = plain.square().sum(others, keepdim=True)
        ratio = (plain * weighted).sum(others, keepdim=True) / size
        owner = (ratio.unsqueeze(-1) - weights).abs().nan_to_num(0.0).argmin(-1)
        rest = (weighted - plain * weights[owner]).square().sum(others, keepdim=True)
        if bool((rest <= (64 * torch.finfo(plain.dtype).eps) ** 2 * size).all()):
            return owner
    return None


def _passages(root: Any, ends: set[Any]) -> list[GradientEdge]:
    """The places between the root and the ends that every way from the root to the ends passes, in order."""
    leading = _leading(root, ends)
    waiting: dict[Any, int] = {}
    for node in leading:
        for after, _ in node.next_functions:
            if after in leading:
                waiting[after] = waiting.get(after, 0) + 1
    found: list[GradientEdge] = []
    # The nodes that are reached but not left. If there is only one, every way passes it.
    reached: dict[Any, set[int]] = {root: set()}
    ready = deque([root])
    while ready:
        node = ready.popleft()
        if node in ends:
            break
        if len(reached) == 1 and len(reached[node]) == 1:
            found.append(GradientEdge(node, reached[node].pop()))
        del reached[node]
        for after, number in node.next_functions:
            if after in leading:
                reached.setdefault(after, set()).add(number)
                waiting[after] -= 1
                if not waiting[after]:
                    ready.append(after)
    return found


def _leading(root: Any, ends: set[Any]) -> set[Any]:
    """The nodes of the graph from which a way leads to the ends."""
    before: dict[Any, list[Any]] = {root: []}
    stack = [root]
    while stack:
        node = stack.pop()
        for after, _ in node.next_functions:
            if after is not None:
                if after not in before:
                    before[after] = []
                    stack.append(after)
                before[after].append(node)
    leading: set[Any] = set()
    stack = [end for end in ends if end in before]
    while stack:
        node = stack.pop()
        if node not in leading:
            leading.add(node)
            stack += before[node]
    return leading
