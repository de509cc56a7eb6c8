"""The benchmark that hides cells: where the score is a sum over pixels, drops are the contributions."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import hiding
from captum_cav import InputCAV, LayerCAV, zoo
from captum_cav.visualization import spatial_map

SIZE = (10, 14)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(3 * 10 * 14, 4)).double()


def test_cells_divide_the_picture() -> None:
    masks = hiding.masks_of(4, 4, SIZE)
    assert masks.shape == (16, *SIZE)
    assert torch.equal(masks.sum(0), torch.ones(SIZE, dtype=torch.long))
    # Halves, rounded to even: 2.5 and 7.5 rows, 3.5 and 10.5 columns.
    assert masks[5].nonzero()[[0, -1]].tolist() == [[2, 4], [4, 6]]
    assert torch.equal(hiding.masks_of(2, 1, SIZE)[0].sum(1), torch.tensor([14] * 5 + [0] * 5))


def test_drops_are_contributions_where_the_score_is_their_sum() -> None:
    net, x = network(), torch.rand(1, 3, *SIZE, dtype=torch.float64)
    masks = hiding.masks_of(4, 4, SIZE)
    maps = torch.cat([InputCAV(net, normalize=None).attribute(x, target).sum(1) for target in (1, 3)])
    drops = hiding.drops(net, x, masks, "zero", [1, 3])
    torch.testing.assert_close(hiding.contributions(maps, masks), drops)
    # Of a coarser layer, the sum is kept.
    coarse = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3 * 5 * 7, 4)).double()
    maps = spatial_map(LayerCAV(coarse, "0", normalize=None).attribute(x, 2), SIZE)
    torch.testing.assert_close(hiding.contributions(maps, masks).sum(), maps.sum())


def test_halves_and_cells_are_ranked_as_the_network_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network that is linear in its pixels the map is right, and turned round it is wrong."""
    net = network().float()
    own = zoo.Network(
        "own",
        net,
        lambda picture: torch.linspace(0, 1, 420).reshape(3, 10, 14),
        lambda picture: picture,
        ("German shepherd", "tabby", "pug", "boxer"),
    )
    maps = InputCAV(net, normalize=None)

    def explain(
        method: str, name: str, model: nn.Module, inputs: torch.Tensor, targets: list[int]
    ) -> dict[str, torch.Tensor]:
        found = torch.cat([maps.attribute(inputs, target).sum(1) for target in targets])
        return {"input": found if method == "cav" else -found}

    monkeypatch.setattr(hiding, "explain", explain)
    monkeypatch.setattr(zoo, "demo_picture", lambda: Image.new("RGB", (14, 10)))
    found = hiding.measure(own, ["cav", "turned"])
    assert found["zero"]["cells"] == {"cav": {"input": [1.0, 1.0]}, "turned": {"input": [-1.0, -1.0]}}
    assert found["zero"]["halves"] == {"cav": {"input": 2.0}, "turned": {"input": 0.0}}
    torch.testing.assert_close(torch.tensor(found["scores"]), net(own.preprocess(None)[None])[0, :2].detach())
