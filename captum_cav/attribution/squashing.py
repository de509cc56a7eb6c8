"""The squashing function at the end of a model, and its logits: the numbers before the function.

A sigmoid or a softmax maps a score ``z`` to a number ``p`` that may have another sign than ``z``. The pass-through rule
gives ``z`` the coefficient ``p / z``. So if the signs differ, all contributions to ``z`` turn their signs round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from captum_cav.errors import ModelError
from captum_cav.operations.forms import SQUASHED, Form, What, form_among
from captum_cav.propagation.marks import get_mark
from captum_cav.propagation.trace import Trace
from captum_cav.propagation.traits import Trait

_SQUASHED: int = Trait.SQUASHED.value
_GATE: int = Trait.GATE.value


@dataclass(frozen=True)
class Squashing:
    """A squashing function that gave the output of a model, or the output of a layer.

    Args:
        form: what the output is in terms of the logits.
        output: shape (N, ...), the output.
    """

    form: Form
    output: torch.Tensor

    @property
    def name(self) -> str:
        """The name of the function, such as ``"log_softmax"``."""
        return self.form.what.name.lower()

    @property
    def is_logarithm(self) -> bool:
        """Whether the output is the logarithm of a probability."""
        return self.form.what in (What.LOG_SOFTMAX, What.LOG_SIGMOID)

    @property
    def is_of_each_element(self) -> bool:
        """Whether each number of the output comes from one logit, as behind a sigmoid."""
        return self.form.what not in (What.SOFTMAX, What.LOG_SOFTMAX)

    @property
    def classes(self) -> int | None:
        """How many classes the output has in dimension 1. None if its classes lie elsewhere, or some were left out."""
        before, dims = self.form.before, self.form.dims
        if len(dims) != 1 or dims[0] % before.dim() != 1 or before.numel() != self.output.numel():
            return None
        return before.shape[1]

    def logits(self) -> torch.Tensor:
        """The logits, in the shape of the output."""
        with torch.enable_grad():
            return self.form.logits().reshape(self.output.shape)

    def lies_behind(self, chosen: Sequence[int], run: object) -> list[bool]:
        """Whether the function lies behind each of some tapped layers.

        Args:
            chosen: the indices of the layers among what was tapped.
            run: the identity of the pass.
        """
        mark = get_mark(self.form.before, run)
        return [mark is not None and bool(mark.taps >> index & 1) for index in chosen]

    def slopes(self, scores: torch.Tensor, trace: Trace) -> torch.Tensor:
        """The signs of the coefficients that scores pass on to the logits, by the rules that their operations have.

        Args:
            scores: shape (N,), selected from the output.
            trace: the state of the pass.

        Returns:
            Numbers of these signs, in the shape of the output. 0 where nothing reaches a logit.
        """
        before, start = self.form.before, self.form.before
        slopes = _gradient(scores, start)
        while slopes is None:
            # A function that is written out passes contributions to its beginning, past its other parts.
            mark = get_mark(start, trace.run)
            if mark is None or not isinstance(mark.handoff, Form):
                return torch.zeros_like(self.output)
            start = mark.handoff.before
            slopes = _gradient(scores, start)
        if start is not before:
            rise = _gradient(before, start)
            slopes = torch.zeros_like(slopes) if rise is None else slopes * rise
        # The shares of constants belong to the backward pass that follows.
        trace.shares.settle([], scores.device)
        if self.form.is_reversed:
            slopes = -slopes
        for move in self.form.moves:
            slopes = move(slopes)
        return slopes.reshape(self.output.shape)


def _gradient(values: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor | None:
    (found,) = torch.autograd.grad(values.sum(), tensor, retain_graph=True, allow_unused=True)
    return found


def squashing_of(output: Any, run: object) -> Squashing | None:
    """The squashing function that gave a tensor, or None.

    Args:
        output: what the model or the layer returned.
        run: the identity of the pass.
    """
    mark = get_mark(output, run) if isinstance(output, torch.Tensor) else None
    handoff = None if mark is None else mark.handoff
    form = None if handoff is None else form_among(handoff)
    return Squashing(form, output) if form is not None and form.what in SQUASHED and form.holds_for(output) else None


def is_hidden(output: Any, run: object) -> bool:
    """Whether an output was computed further from a squashing function that lies behind the explained layers.

    Args:
        output: what the model returned, without a :class:`Squashing`.
        run: the identity of the pass.
    """
    return _has_trait(output, run, _SQUASHED)


def _has_trait(output: Any, run: object, traits: int) -> bool:
    mark = get_mark(output, run) if isinstance(output, torch.Tensor) else None
    return mark is not None and bool(mark.traits & traits)


def refuse_hidden(output: Any, run: object, score: str) -> None:
    """Refuse to look for logits behind an output that was computed further from a squashing function.

    Args:
        output: what the model returned.
        run: the identity of the pass.
        score: what is explained, for the message.

    Raises:
        ModelError: if the output was computed from a squashing function.
    """
    if _has_trait(output, run, _SQUASHED | _GATE):
        raise ModelError(
            f'score="{score}" needs what the last squashing function takes, but the output was computed further from '
            "such a function (as 2 * sigmoid(z) - 1 is), or the explained layers lie behind the function; let "
            'forward_func return the logits, or explain score="output".'
        )
