"""Attributions that are called again and again: what comes often is recorded, without another bit."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV
from captum_cav.compilation import repeated
from captum_cav.compilation.repeated import Recordings, Repeated, keeping, kept
from captum_cav.errors import InputError
from captum_cav.tensors import tensors_in
from tests.compilation.test_equality import recordings_of


class Counted(nn.Sequential):
    """Two layers. Their Python code is counted; a replay does not call the code."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
        self.calls: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(x))
        return super().forward(x)


class Deciding(nn.Module):
    """Decides by a number what to do, which cannot be recorded."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x if bool(x.sum() > 0) else 3 * x


def inputs(number: int, samples: int = 2) -> torch.Tensor:
    return torch.rand(samples, 4, generator=torch.Generator().manual_seed(number)) + 0.1


def list_of(found: Any) -> list[torch.Tensor]:
    return tensors_in(found)


def made(attribution: Repeated) -> int:
    return recordings_of(attribution._recorded)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls run as usual."""
    monkeypatch.setattr(repeated, "RECORD_AFTER", 2)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("options", [{}, {"return_convergence_delta": True}], ids=str)
def test_what_comes_often_is_replayed_with_the_same_bits(options: dict[str, Any]) -> None:
    model = Counted().eval()
    cav = LayerCAV(model, ["0", "1"], normalize="abs")
    often = Repeated(cav)
    for number in range(5):
        expected = list_of(cav.attribute(inputs(number), number % 3, **options))
        before = len(model.calls)
        found = list_of(often.attribute(inputs(number), number % 3, **options))
        assert all(map(torch.equal, found, expected))
        assert made(often) == (number >= 2)
        # The third call records.
        assert number == 2 or len(model.calls) - before == (number < 2)
    targets = [often.attribute_targets(inputs(7), [0, 2], **options) for _ in range(3)][-1]
    expected = cav.attribute_targets(inputs(7), [0, 2], **options)
    assert all(map(torch.equal, *map(list_of, (targets, expected))))
    # A batch of another size comes once, and is not recorded.
    often.attribute(inputs(8, 1), 0, **options)
    assert made(often) == 2


@pytest.mark.usefixtures("soon")
def test_a_model_that_cannot_be_recorded_runs_as_usual_and_says_nothing() -> None:
    cav = InputCAV(Deciding(), normalize="abs")
    often = Repeated(cav)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(5):
            assert torch.equal(often.attribute(-inputs(number), 0), cav.attribute(-inputs(number), 0))
    assert made(often) == 0


@pytest.mark.usefixtures("soon")
def test_whatever_torch_raises_while_it_records_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    cav = InputCAV(Counted().eval(), normalize="abs")
    often = Repeated(cav)

    def fail(*args: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(often._recorded, "_record", fail)
    for number in range(4):
        assert torch.equal(often.attribute(inputs(number), 0), cav.attribute(inputs(number), 0))


@pytest.mark.usefixtures("soon")
def test_an_input_that_cannot_be_explained_does_not_prevent_a_recording() -> None:
    often = Repeated(InputCAV(Counted().eval(), normalize="abs"))
    for _ in range(4):
        with pytest.raises(InputError, match="NaN"):
            often.attribute(torch.full((2, 4), torch.nan), 0)
    often.attribute(inputs(0), 0)
    assert made(often) == 1


def test_a_context_keeps_attributions_by_key() -> None:
    model = Counted().eval()

    def make() -> LayerCAV:
        return LayerCAV(model, "0")

    assert kept((model, "0"), make) is not kept((model, "0"), make)
    with keeping(Recordings(fused=False)):
        first = kept((model, "0"), make)
        assert isinstance(first, Repeated)
        assert kept((model, "0"), make) is first
        assert kept((model, "1"), make) is not first
        with keeping(None):
            assert isinstance(kept((model, "0"), make), LayerCAV)
        for number in range(2 * repeated._MOST):
            kept(number, make)
        assert kept((model, "0"), make) is not first
        assert len(repeated.kept_recordings()._made) == repeated._MOST
    assert repeated.kept_recordings() is None
