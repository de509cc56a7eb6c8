"""The account of constants: how much of the score came from biases and other tensors that only add.

Where an operation's output has a part ``k`` that no input carries (a bias, a batch-norm shift, a positional
embedding, the 1 in ``x + 1``), that part's contribution is ``k * c`` with ``c`` the output's own coefficient
(equations 3 and 4 of the paper: the bias is one more input, always 1). A hook reads ``c`` in the one backward pass.
"""

from __future__ import annotations

import torch


class Account:
    """Shares of constants, collected while one backward pass runs.

    Each share is a differentiable function of the gradient that seeds the backward pass, so that it can be split by
    sample afterwards without knowing where an operation keeps its batch dimension.
    """

    def __init__(self) -> None:
        self._shares: list[tuple[int, torch.Tensor]] = []

    def watch(self, output: torch.Tensor, part: torch.Tensor, taps: int) -> None:
        """Measure the share of a constant part of an output when the backward pass reaches it.

        Args:
            output: carrier tensor.
            part: its constant part, any shape that broadcasts to the output's.
            taps: bit set of the layers that the output descends from.
        """
        # A mask of -inf has no finite share; its coefficient is exactly zero.
        part = torch.nan_to_num(part.detach(), nan=0.0, posinf=0.0, neginf=0.0)

        def measure(coefficients: torch.Tensor) -> None:
            share = part * coefficients.sum_to_size(part.shape).conj()
            self._shares.append((taps, share.real.sum(dtype=torch.float64)))

        output.register_hook(measure)  # type: ignore[no-untyped-call]

    def enter(self, share: torch.Tensor, taps: int) -> None:
        """Enter a share that a rule computed in the backward pass.

        Args:
            share: a float64 scalar.
            taps: bit set of the layers that the rule's operation descends from.
        """
        self._shares.append((taps, share))

    def __len__(self) -> int:
        """How many shares were entered so far."""
        return len(self._shares)

    def since(self, count: int) -> list[torch.Tensor]:
        """The shares that were entered after the first ``count``, each a float64 scalar."""
        return [share for _, share in self._shares[count:]]

    def settle(self, count: int) -> list[torch.Tensor]:
        """Close the account of one backward pass.

        Args:
            count: number of tapped layers.

        Returns:
            For each layer, the sum of the shares of all constants behind it, a float64 scalar.
        """
        places = {share.device for _, share in self._shares} or {torch.device("cpu")}
        # Where the shares are; of a model on several devices, on the CPU.
        place = places.pop() if len(places) == 1 else torch.device("cpu")
        totals = [torch.zeros((), dtype=torch.float64, device=place) for _ in range(count)]
        for taps, share in self._shares:
            for index in range(count):
                if taps >> index & 1:
                    totals[index] = totals[index] + share.to(place)
        self._shares.clear()
        return totals


class Ledger:
    """What one operation's rule may keep for the backward pass to report: it holds no tensor and no graph.

    Args:
        run: the notes of the forward pass.
        taps: bit set of the layers that the operation descends from.
    """

    def __init__(self, run: Notes, taps: int) -> None:
        self.taps = taps
        self._run = run

    @property
    def zeros_carry(self) -> bool:
        """Whether any rule of the forward pass gave shares to units of value 0."""
        return self._run.zeros_carry

    @property
    def counts(self) -> bool:
        """Whether anyone asked for the shares of constants."""
        return self._run.account is not None

    def enter(self, share: torch.Tensor) -> None:
        """Report a share of constants, a float64 scalar; only where they count."""
        assert self._run.account is not None
        self._run.account.enter(share, self.taps)


class Notes:
    """What the rules of one forward pass have in common.

    Attributes:
        account: the account of constants, or None.
        zeros_carry: whether some rule gives shares to units of value 0.
    """

    def __init__(self, account: Account | None) -> None:
        self.account = account
        self.zeros_carry = False
