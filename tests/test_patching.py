"""Patches of activations: the measured effects against runs by hand, and both estimates against their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import LayerCAV
from captum_cav.errors import InputError, LayerError, ModelError, OptionError
from captum_cav.patching import patch
from tests.support.small_networks import seeded
from tests.support.traces import left_as_it_was


class Reader(nn.Module):
    """Tokens of four channels; the second layer gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.first = nn.Linear(4, 5)
        self.second = Pair()
        self.head = nn.Linear(15, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.behind(self.second(self.first(self.embedding(ids)).tanh())[0])

    def behind(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden.relu().flatten(1))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
        return self.linear(x), "more"


CLEAN = torch.tensor([[1, 2, 3], [4, 5, 6]])
CORRUPTED = torch.tensor([[1, 7, 3], [9, 5, 8]])


def reader() -> Reader:
    with seeded():
        return Reader().double().eval()


def hidden_by_hand(net: Reader, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    embedded = net.embedding(ids)
    first = net.first(embedded)
    return {"embedding": embedded, "first": first, "second": net.second(first.tanh())[0]}


def score_from(net: Reader, layer: str, hidden: torch.Tensor) -> torch.Tensor:
    if layer == "embedding":
        layer, hidden = "first", net.first(hidden)
    if layer == "first":
        hidden = net.second(hidden.tanh())[0]
    return net.behind(hidden)[:, 1]


@pytest.mark.parametrize("into", ["corrupted", "clean"])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_measured_effects_are_those_of_runs_by_hand(into: Any, batch_size: int) -> None:
    net = reader()
    layers = ["embedding", "first", "second"]
    with left_as_it_was(net, CLEAN):
        found = patch(net, CLEAN, CORRUPTED, 1, layers, into=into, batch_size=batch_size)
        whole = patch(net, CLEAN, CORRUPTED, [1, 1], layers, into=into, places=None, batch_size=batch_size)
    clean, corrupted = hidden_by_hand(net, CLEAN), hidden_by_hand(net, CORRUPTED)
    torch.testing.assert_close(found.clean, net(CLEAN)[:, 1].detach())
    for layer in layers:
        own, other = (corrupted, clean) if into == "corrupted" else (clean, corrupted)
        sign = 1 if into == "corrupted" else -1
        base = score_from(net, layer, own[layer])
        for place in range(3):
            here = (torch.arange(3) == place)[:, None]
            patched = score_from(net, layer, torch.where(here, other[layer], own[layer]))
            torch.testing.assert_close(found.true[layer][:, place], (sign * (patched - base)).detach())
        patched = score_from(net, layer, other[layer])
        torch.testing.assert_close(whole.true[layer][:, 0], (sign * (patched - base)).detach())


@pytest.mark.parametrize("into", ["corrupted", "clean"])
def test_estimates_are_differences_times_coefficients_and_gradients(into: Any) -> None:
    net = reader()
    found = patch(net, CLEAN, CORRUPTED, 1, ["first", "second"], rules="gamma", into=into)
    run = CORRUPTED if into == "corrupted" else CLEAN
    clean, corrupted = hidden_by_hand(net, CLEAN), hidden_by_hand(net, CORRUPTED)
    own = hidden_by_hand(net, run)
    for layer in ("first", "second"):
        difference = (clean[layer] - corrupted[layer]).detach()
        hidden = own[layer].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(score_from(net, layer, hidden).sum(), hidden)
        torch.testing.assert_close(found.gradient[layer], (difference * gradient).sum(2))
        contributions = LayerCAV(net, layer, rules="gamma", normalize=None).attribute(run, 1)
        contributions = contributions[0] if isinstance(contributions, (tuple, list)) else contributions
        torch.testing.assert_close(found.relevance[layer], (difference / own[layer].detach() * contributions).sum(2))


def test_in_a_linear_network_all_three_are_the_same() -> None:
    with seeded():
        net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Flatten(), nn.Linear(18, 2)).double().eval()
    clean, corrupted = torch.randn(2, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = patch(net, clean, corrupted, 0, ["0", net[1]], rules="paper")
    for layer in ("0", "1"):
        torch.testing.assert_close(found.relevance[layer], found.true[layer])
        torch.testing.assert_close(found.gradient[layer], found.true[layer])
        torch.testing.assert_close(found.true[layer].sum(1), found.clean - found.corrupted)
    assert all(value == pytest.approx(1) for of in found.correlations().values() for value in of.values())


def test_the_table_and_the_figure_show_the_correlations() -> None:
    found = patch(reader(), CLEAN, CORRUPTED, 1, ["first", "second"])
    correlations = found.correlations()
    true = torch.cat([effect.flatten() for effect in found.true.values()])
    estimated = torch.cat([effect.flatten() for effect in found.relevance.values()])
    expected = float(torch.corrcoef(torch.stack([true, estimated]))[0, 1])
    assert correlations["all layers"]["relevance"] == pytest.approx(expected)
    table = str(found)
    assert f"| all layers | {expected:.3f} |" in table
    assert "clean activations into the corrupted run" in table
    figure = found.figure()
    assert [axis.get_title().partition("\n")[0] for axis in figure.axes] == ["first", "second"] * 2
    assert f"r = {correlations['second']['gradient']:.2f}" in figure.axes[3].get_title()


def test_a_score_and_more_arguments() -> None:
    net = reader()
    more = torch.ones(2, 1, dtype=torch.float64)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, ids: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return self.net(ids) * scale

    def difference(output: torch.Tensor) -> torch.Tensor:
        return output[:, 1] - output[:, 0]

    found = patch(
        Scaled().eval(), CLEAN, CORRUPTED, layers=["net.first"], additional_forward_args=3 * more, score=difference
    )
    one, other = (patch(net, CLEAN, CORRUPTED, target, ["first"]) for target in (1, 0))
    torch.testing.assert_close(found.true["net.first"], 3 * (one.true["first"] - other.true["first"]))
    torch.testing.assert_close(found.gradient["net.first"], 3 * (one.gradient["first"] - other.gradient["first"]))


def test_what_does_not_fit_is_refused() -> None:
    net = reader()
    with pytest.raises(InputError, match=r"clean has the shapes \[\(2, 3\)\] and corrupted \[\(2, 2\)\]; expected"):
        patch(net, CLEAN, CORRUPTED[:, :2], 1, ["first"])
    with pytest.raises(OptionError, match=r"layers is empty; expected at least one layer"):
        patch(net, CLEAN, CORRUPTED, 1)
    with pytest.raises(LayerError, match=r"unknown layer 'firts'"):
        patch(net, CLEAN, CORRUPTED, 1, ["firts"])
    with pytest.raises(OptionError, match=r"places is 3 for values of shape \(2, 3, 5\); expected a dimension behind"):
        patch(net, CLEAN, CORRUPTED, 1, ["first"], places=3)
    with pytest.raises(OptionError, match='into is \'both\'; expected "corrupted" or "clean"'):
        patch(net, CLEAN, CORRUPTED, 1, ["first"], into="both")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="training mode"):
        patch(nn.Sequential(net, nn.Dropout()).train(), CLEAN, CORRUPTED, 1, ["0.first"])


@pytest.mark.slow
def test_relevance_tells_the_effects_in_a_trained_transformer() -> None:
    """A model that says the name that is not repeated, as in the task of indirect objects."""
    from benchmarks.patching import correlations, patched_names, stories, trained_names

    model = trained_names()
    ids, answers = stories(200, torch.Generator().manual_seed(9))
    assert (model(ids).argmax(1) == answers).double().mean() > 0.95
    found = patched_names("attnlrp", model)
    for kind, one in found.items():
        measured = correlations([one])
        assert measured["relevance"] > (0.85 if kind == "residual stream" else 0.95)
        # In the residual stream of so small a model both estimates are about as good.
        assert measured["relevance"] > measured["gradient"] - (0.03 if kind == "residual stream" else 0)
