"""benchmarks.localization: other methods explain log odds as ours do, and what would be wrong is not measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.localization import DEPTHS, LogOdds, all_methods, everything, explain, own_shares, refusal
from captum_cav import LayerCAV, zoo
from captum_cav.comparison.methods import NAMES


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4)).double().requires_grad_(False)


@pytest.mark.parametrize("target", [0, 2, 3])
def test_log_odds_and_their_gradient(target: int) -> None:
    net, x = small(), torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    found = LogOdds(net, target)(x)
    outputs = net(x)
    others = torch.cat([outputs[:, :target], outputs[:, target + 1 :]], 1)
    odds = (outputs[:, target] - others.logsumexp(1)).unsqueeze(1)
    torch.testing.assert_close(found, odds)
    gradients = [torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in (found, odds)]
    torch.testing.assert_close(*gradients)


def test_other_methods_explain_the_log_odds_that_ours_does(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    net.double().eval().requires_grad_(False)
    monkeypatch.setitem(DEPTHS, "small", ("1",))
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    (maps,) = explain("layer_gradient_x_activation+log_odds", "small", net, x, [2, 0], 50).values()
    # Linear, ReLU: contributions are activation x gradient.
    for target, found in zip([2, 0], maps, strict=True):
        ours = LayerCAV(net, "1", score="log_odds", normalize=None).attribute(x, target).sum(1)[0]
        torch.testing.assert_close(found, ours)


def test_the_share_of_the_network_itself() -> None:
    """A class gets 3 of its own cell and 1 of the next one; by log odds nothing else counts where it leads by far."""
    own = torch.eye(4, dtype=torch.float64)
    weights = 3 * own + own.roll(1, 1)

    class Sums(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.unfold(2, 2, 2).unfold(3, 2, 2).sum((1, 4, 5)).flatten(1) @ weights.T

    x = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    scores, odds = own_shares(Sums(), x, [0, 1, 2, 3])
    assert scores == pytest.approx([0.75] * 4)
    # By hand for class 0, over the eight subsets of the three other cells.
    outputs = torch.cartesian_prod(*[torch.tensor([0.0, 4.0], dtype=torch.float64)] * 4) @ weights.T
    shown = torch.cartesian_prod(*[torch.tensor([False, True])] * 4)
    values = torch.logit(outputs.softmax(1)[:, 0])
    effects = torch.stack([values[shown[:, cell]].mean() - values[~shown[:, cell]].mean() for cell in range(4)])
    assert odds[0] == pytest.approx(float(effects[0] / effects.clamp(min=0).sum()))


def test_every_method_once_and_reasons_of_those_left_out() -> None:
    assert sorted(everything()) == sorted({*NAMES, "random", "uniform"} - {"cav:paper"})
    assert set(everything()) <= set(all_methods())
    network, x = zoo.load("efficientnet_lite0"), torch.zeros(1, 3, 224, 224)
    refused = {name: refusal(name, network, x) for name in ("layer_lrp", "gradcam", "guided_gradcam+log_odds")}
    assert "LRP sees certain modules only, and would be wrong at add" in str(refused.pop("layer_lrp"))
    assert set(refused.values()) == {None}
