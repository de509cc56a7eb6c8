"""The trace: the state of one pass. The forward pass fills it, and the backward pass reads it."""

from __future__ import annotations

from typing import Any

import torch

from captum_cav.propagation.constant_shares import ConstantShares
from captum_cav.propagation.marks import Mark, get_mark, set_mark
from captum_cav.propagation.records import Audited, RuleLog, Unknown
from captum_cav.propagation.saved_values import SavedValues
from captum_cav.propagation.snapshots import Snapshots
from captum_cav.propagation.taps import Tapped, note_alias, tap
from captum_cav.propagation.traits import Trait
from captum_cav.tensors import tensors_in
from captum_cav.torch_internals import now

_BEFORE_FIRST_LAYER: int = Trait.BEFORE_FIRST_LAYER.value
_SQUASHED: int = Trait.SQUASHED.value


class Trace:
    """The state of one pass.

    Functions of the backward pass may keep ``shares`` and single saved values, but never the trace. The trace holds the
    graph, so the graph must not hold the trace.

    Args:
        with_shares: whether to measure the shares of constants.
        with_rules: whether to note the rule of each operation.
        audited: whether to audit each operation. Needs the shares of constants.

    Attributes:
        run: the identity of the pass, which is in all its marks.
        began: the age of the pass (see :func:`captum_cav.torch_internals.age_of`).
        shares: the shares of constants.
        saved: the values that the backward pass reads.
        taps: the taps, in the order of the forward pass.
        input_sizes: the sizes of the inputs' maps: what their shapes have behind samples and channels.
        rules: the rule of each operation, or None.
        audited: the audit of each operation, or None.
        weighed: the last operation in which a gate weighed nothing but constants, for messages; None if there is none.
        snapshots: the values of carriers, for the audit.
        bypassed: the tapped layers that some path to the output bypasses, as a bit set. Filled by the audit.
        unknown: the operations without a rule. Filled if ``on_unknown`` is ``"note"``.
    """

    def __init__(self, *, with_shares: bool, with_rules: bool, audited: bool) -> None:
        assert with_shares or not audited
        self.run = object()
        self.began = now()
        self.shares = ConstantShares(with_shares)
        self.saved = SavedValues()
        self.taps: list[Tapped] = []
        self.input_sizes: list[torch.Size] = []
        self.rules = RuleLog() if with_rules else None
        self.audited: list[Audited] | None = [] if audited else None
        self.weighed: str | None = None
        self.snapshots = Snapshots(self.run)
        self.bypassed = 0
        self.unknown: list[Unknown] = []

    @property
    def is_watched(self) -> bool:
        """Whether the pass records more than contributions, such as shares of constants, rules or an audit."""
        return self.shares.is_measured or self.rules is not None

    def mark_input(self, tensor: torch.Tensor) -> None:
        """Note that a tensor is an input of the model."""
        self.input_sizes.append(tensor.shape[2:])
        set_mark(tensor, Mark(self.run, 0, _BEFORE_FIRST_LAYER))

    def descent(self, tensors: list[torch.Tensor], without: frozenset[int]) -> int:
        """The tapped layers before some tensors, as a bit set.

        Args:
            tensors: the tensors.
            without: identities of the tensors that do not count.
        """
        taps = 0
        for tensor in tensors:
            mark = get_mark(tensor, self.run)
            taps |= mark.taps if mark is not None and id(tensor) not in without else 0
        return taps

    def tap(self, value: Any) -> Any:
        """Tap a layer's input or output.

        Returns:
            The value with which the model goes on.
        """
        bit, behind = 1 << len(self.taps), 0

        def mark(carrier: torch.Tensor, source: torch.Tensor) -> None:
            nonlocal behind
            before = get_mark(source, self.run)
            if before is None:
                new = Mark(self.run, bit, 0)
            else:
                note_alias(source, carrier)
                behind |= before.taps
                new = before._replace(taps=before.taps | bit, traits=before.traits & ~_SQUASHED)
            set_mark(carrier, new)
            if self.audited is not None:
                self.snapshots.take(carrier)

        passed_on, tapped = tap(value, self.saved.save, mark)
        tapped.behind = behind
        self.taps.append(tapped)
        return passed_on

    def copied(self, value: Any) -> Any:
        """A copy of a tensor, with its mark. Any other value is returned unchanged."""
        if not isinstance(value, torch.Tensor):
            return value
        copy, mark = value.clone(), get_mark(value, self.run)
        if mark is not None:
            set_mark(copy, mark)
        return copy

    def note_consumer(self, value: Any) -> None:
        """Note that the tensors of a value are used by something other than an operation, such as a tap."""
        for tensor in tensors_in(value):
            mark = get_mark(tensor, self.run)
            if mark is not None and mark.handoff is not None:
                mark.handoff.consumers += 1
