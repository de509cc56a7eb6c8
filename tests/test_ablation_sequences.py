"""Ablation in sequences of tokens, in series and in signals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from captum_cav.ablation import ablate, positive_spots, resize_mask
from captum_cav.ablation.disabling import replacement
from captum_cav.errors import InputError, LayerError, OptionError
from tests.support.small_networks import seeded

IDS = torch.tensor([[5, 2, 8, 1, 3, 7], [4, 4, 9, 6, 1, 2]])
MASK = torch.tensor([True, False, False, True, False, False])


class Reader(nn.Module):
    """A classifier of six tokens with four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(24, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.behind(self.mix(self.embedding(ids)))

    def behind(self, mixed: torch.Tensor) -> torch.Tensor:
        return self.head(mixed.tanh().flatten(1))


def reader() -> Reader:
    with seeded():
        return Reader().double().eval()


def signals() -> nn.Module:
    with seeded():
        return nn.Sequential(
            nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(9, 3)
        ).double()


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_token_ids_are_replaced() -> None:
    net = reader()
    found = ablate(net, IDS, None, MASK, by=0)
    torch.testing.assert_close(found.before, net(IDS).detach())
    torch.testing.assert_close(found.after, net(torch.where(MASK, 0, IDS)).detach())
    assert found.described() == "2 of 6 places of the input set to 0"
    each = torch.stack([MASK, ~MASK])
    torch.testing.assert_close(ablate(net, IDS, None, each, by=0).after, net(torch.where(each, 0, IDS)).detach())
    with pytest.raises(OptionError, match="by is 'zero' for token ids; expected the id that replaces the tokens"):
        ablate(net, IDS, None, MASK)


@pytest.mark.parametrize("by", ["zero", "mean", "blur", -1.5])
@pytest.mark.parametrize("layer", ["embedding", "mix"])
def test_the_values_of_tokens_are_replaced(layer: str, by: Any) -> None:
    net = reader()
    values = net.embedding(IDS) if layer == "embedding" else net.mix(net.embedding(IDS))
    instead = replacement(values.mT, by).mT if isinstance(by, str) else torch.tensor(by, dtype=torch.float64)
    changed = torch.where(MASK[:, None], instead, values)
    expected = net.behind(net.mix(changed) if layer == "embedding" else changed).detach()
    torch.testing.assert_close(ablate(net, IDS, layer, MASK, by=by).after, expected)


@pytest.mark.parametrize("by", ["zero", "mean", "blur", 2.0])
def test_signals_and_their_layers_are_replaced(by: Any) -> None:
    net, x = signals(), numbers(2, 2, 6)
    instead = replacement(x, by)
    torch.testing.assert_close(ablate(net, x, None, MASK, by=by).after, net(torch.where(MASK, instead, x)).detach())
    within = net[:2](x)
    expected = net[2:](torch.where(MASK, replacement(within, by), within)).detach()
    torch.testing.assert_close(ablate(net, x, "1", MASK, by=by).after, expected)
    pooled = net[:3](x)
    half = torch.tensor([True, False, False])
    expected = net[3:](torch.where(half, replacement(pooled, by), pooled)).detach()
    # The layer has three channels and three moments, of six at the input.
    with pytest.raises(LayerError, match=r"layer '2' cannot be disabled .*shape \(2, 3, 3\) belong to 6 places"):
        ablate(net, x, "2", half, by=by)
    torch.testing.assert_close(ablate(net, x, "2", half, by=by, channels=1).after, expected)
    whole = torch.tensor([True, True, False, False, False, False])
    torch.testing.assert_close(ablate(net, x, "2", whole, by=by, channels=1).after, expected)


def test_series_and_signals_with_the_channels_last() -> None:
    net, x = signals(), numbers(2, 2, 6)

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x.mT)

    found = ablate(Turned(), x.mT, None, MASK, channels=-1)
    torch.testing.assert_close(found.after, ablate(net, x, None, MASK).after)

    class Single(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return net(torch.stack([x, x], 1))

    series = x[:, 0]
    found = ablate(Single(), series, None, MASK, by="mean")
    replaced = torch.where(MASK, series.mean(1, keepdim=True), series)
    torch.testing.assert_close(found.after, Single()(replaced).detach())


def test_the_blur_of_a_signal_is_the_blur_of_a_row() -> None:
    x = numbers(1, 2, 40)
    blurred = replacement(x, "blur")
    torch.testing.assert_close(blurred.flip(2), replacement(x.flip(2), "blur"))
    assert blurred.diff().abs().mean() < x.diff().abs().mean() / 4
    constant = torch.ones(1, 2, 40, dtype=torch.float64)
    torch.testing.assert_close(replacement(constant, "blur"), constant)


def test_masks_and_spots_of_sequences() -> None:
    assert resize_mask(torch.tensor([True, True, False, False, True, False]), (3,)).tolist() == [True, False, False]
    maps = torch.tensor([[3.0, -1, 0, 1], [0, 2, 2, -9]])
    assert positive_spots(maps, 0.6, sides=1).tolist() == [[True, False, False, False], [False, True, True, False]]
    assert positive_spots(maps[0], 0.6, sides=1).tolist() == [True, False, False, False]
    with pytest.raises(InputError, match=r"contributions have shape \(4,\); expected maps of 2 sides, one or a batch"):
        positive_spots(maps[0], 0.6)
    volumes = torch.rand(2, 2, 2, 2)
    each = [positive_spots(one, 0.5, sides=3) for one in volumes]
    assert torch.equal(positive_spots(volumes, 0.5, sides=3), torch.stack(each))
