"""Shares of constants: how much of the score came from biases and from other tensors that only add.

Where an operation's output has a part ``k`` that no input carries (a bias, a batch-norm shift, a positional embedding,
the 1 in ``x + 1``), the contribution of that part is ``k * c``, with ``c`` the coefficient of the output. These
are equations 3 and 4 of the paper: the bias is one more input, always 1. A hook reads ``c`` in the one backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from captum_cav.tensors import size_of_infinity
from captum_cav.torch_internals import base_of


class ConstantShares:
    """Shares of constants, collected while one backward pass runs.

    Each share is a differentiable function of the gradient with which the backward pass starts. So a share can be
    divided by sample afterwards, although nobody knows in which dimension an operation keeps its samples.

    This object holds neither a tensor nor a graph of the forward pass, so that functions of the backward pass may keep
    it.

    Attributes:
        is_measured: whether anybody asked for the shares.
        rules_for_zeros: how many operations so far had a rule that gives shares to units of value 0 (see
            :mod:`captum_cav.propagation.zeros`).
    """

    def __init__(self, is_measured: bool) -> None:
        self.is_measured = is_measured
        self.rules_for_zeros = 0
        self._shares: list[tuple[int, torch.Tensor]] = []

    @property
    def zeros_carry(self) -> bool:
        """Whether some rule gave shares to units of value 0."""
        return self.rules_for_zeros > 0

    def watch(self, output: torch.Tensor, part: torch.Tensor, taps: int) -> None:
        """Measure the share of a constant part of an output when the backward pass reaches the output.

        Args:
            output: a tensor that carries contributions.
            part: its constant part, of a shape that broadcasts to the output's shape.
            taps: bit set of the layers from which the output comes.
        """
        base = base_of(output)
        if base is not None:
            # The model may write into the view or its base later. Then only the base stays in the graph.
            output, part = base, _in_base(output, base, part)
        # A mask of -inf has no finite share. Its coefficient is exactly zero.
        part = torch.nan_to_num(part.detach(), nan=0.0, posinf=0.0, neginf=0.0)
        is_mask = part.abs() >= size_of_infinity(part.dtype)

        def measure(coefficients: torch.Tensor) -> None:
            if not self.is_measured:
                return
            coefficients = coefficients.sum_to_size(part.shape).conj()
            # A share is differentiated, too. Of a mask without a coefficient the derivative would be infinity times 0.
            share = part.masked_fill(is_mask & (coefficients == 0), 0.0) * coefficients
            self._shares.append((taps, share.real.sum(dtype=torch.float64)))

        output.register_hook(measure)  # type: ignore[no-untyped-call]

    def enter(self, share: torch.Tensor, taps: int) -> None:
        """Enter a share of constants that a rule computed in the backward pass.

        Args:
            share: a float64 scalar.
            taps: bit set of the layers from which the rule's operation comes.
        """
        self._shares.append((taps, share))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which backward passes measure no shares."""
        before, self.is_measured = self.is_measured, False
        try:
            yield
        finally:
            self.is_measured = before

    def __len__(self) -> int:
        """How many shares were entered so far."""
        return len(self._shares)

    def since(self, count: int) -> list[torch.Tensor]:
        """The shares that were entered after the first ``count`` shares, each a float64 scalar."""
        return [share for _, share in self._shares[count:]]

    def settle(self, masks: Sequence[int], device: torch.device) -> list[torch.Tensor]:
        """Sum up the shares of one backward pass, and forget them.

        Args:
            masks: bit sets of tapped layers.
            device: where the sums are wanted. A model on several devices has shares on each of them.

        Returns:
            For each bit set, the sum of the shares of all constants behind any of its layers, a float64 scalar.
        """
        totals = [torch.zeros((), dtype=torch.float64, device=device) for _ in masks]
        for taps, share in self._shares:
            for index, mask in enumerate(masks):
                if taps & mask:
                    totals[index] = totals[index] + share.to(device)
        self._shares.clear()
        return totals


class OperationShares:
    """Where the rule of one operation reports shares of constants that only the backward pass can compute.

    Args:
        shares: the shares of the whole pass.
        taps: bit set of the layers from which the operation comes.
    """

    def __init__(self, shares: ConstantShares, taps: int) -> None:
        self.taps = taps
        self._shares = shares

    @property
    def rules_for_zeros(self) -> int:
        """How many operations so far had a rule that gives shares to units of value 0."""
        return self._shares.rules_for_zeros

    def zeros_carry_since(self, rules_for_zeros: int) -> bool:
        """Whether a later operation had such a rule, so that units of value 0 may carry contributions here.

        Args:
            rules_for_zeros: :attr:`rules_for_zeros` when the operation ran.
        """
        return self._shares.rules_for_zeros > rules_for_zeros

    @property
    def are_measured(self) -> bool:
        """Whether anybody asked for the shares of constants."""
        return self._shares.is_measured

    def enter(self, share: torch.Tensor) -> None:
        """Report a share of constants, a float64 scalar. A rule does so only if shares are measured."""
        self._shares.enter(share, self.taps)


def _in_base(view: torch.Tensor, base: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """A part of a view, as a part of its base. Both parts broadcast."""
    if part.dim() <= 1 and view.shape[-1:] == base.shape[-1:] == part.shape and view.numel() == base.numel():
        return part  # The bias of a linear layer. The output of the layer is a view of a matrix that torch made.
    whole = torch.zeros_like(base)
    offset = view.storage_offset() - base.storage_offset()
    whole.as_strided(view.shape, view.stride(), offset).copy_(part)
    return whole
