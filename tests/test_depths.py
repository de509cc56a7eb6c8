"""The layers that are chosen are those that a person would choose."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import captum_cav
from captum_cav import LayerCAV, zoo
from captum_cav.errors import InputError, OptionError

X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Padding(nn.Module):
    """Pads as a module that nobody knows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x, (1, 2, 1, 2))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, pad: nn.Module | None = None) -> None:
        super().__init__()
        self.pad = pad or nn.ZeroPad2d((1, 2, 1, 2))
        self.conv = nn.Conv2d(inputs, outputs, 4, stride)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.skip = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.skip(self.drop(self.act(self.conv(self.pad(x)))))


def head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)]


@pytest.mark.parametrize("pad", [nn.ZeroPad2d, nn.ReflectionPad2d, None])
def test_blocks_are_chosen_and_neither_padding_nor_dropout_nor_identity(pad: type[nn.Module] | None) -> None:
    def padding() -> nn.Module:
        return Padding() if pad is None else pad((1, 2, 1, 2))

    blocks = [Block(3, 4, 2, padding()), Block(4, 4, 1, padding()), Block(4, 6, 2, padding())]
    model = nn.Sequential(nn.Sequential(*blocks), *head(6)).eval()
    names = captum_cav.layers(model, X, 7)
    assert names[:2] == ["0", "0.1"]
    assert not {"pad", "drop", "skip"} & {name.rpartition(".")[2] for name in names}


def test_the_default_network_at_three_depths() -> None:
    """Here a padding of 17 x 17 places was chosen, whose map is shifted against the picture."""
    network = zoo.load("efficientnet_lite0")
    inputs = network.preprocess(zoo.demo_picture())[None]
    for count in (1, 2, 3):
        assert captum_cav.layers(network.model, inputs, count) == list(network.depths[:count])
    five = captum_cav.layers(network.model, inputs)
    assert five.grids == [(7, 7), (14, 14), (28, 28), (56, 56), (112, 112)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["layer4", "layer3", "layer2", "layer1", "relu"]),
        ("densenet121", ["features", *(f"features.denseblock{n}" for n in (3, 2, 1)), "features.relu0"]),
        ("shufflenet_v2_x0_5", ["conv5", "stage3", "stage2", "maxpool", "conv1"]),
    ],
)
def test_the_stages_of_torchvisions_networks(name: str, expected: list[str]) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    assert captum_cav.layers(model, torch.randn(1, 3, 224, 224)) == expected


def test_places_that_do_not_reach_the_score_are_not_shown() -> None:
    """Behind the last attention only the class token of a transformer reaches the score."""
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=3).eval()
    nn.init.normal_(model.heads.head.weight)
    names = captum_cav.layers(model, X)
    assert names == ["encoder.layers.encoder_layer_1", "encoder.layers.encoder_layer_0", "conv_proj"]
    for ratios in LayerCAV(model, names, normalize=None).attribute(X, 0):
        tokens = ratios[:, 1:] if ratios.dim() == 3 else ratios.flatten(2).transpose(1, 2)
        assert (tokens.abs().sum(2) > 0).all()


def test_a_network_before_its_training_has_layers_too() -> None:
    model = torchvision.models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=3).eval()
    assert not model.heads.head.weight.any()
    assert len(captum_cav.layers(model, X)) == 5


def test_the_list_goes_into_an_attribution_and_prints_as_a_table() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), *head(4)).eval()
    names = captum_cav.layers(model, X)
    maps = LayerCAV(model, names).attribute(X, 0)
    assert [tuple(ratios.shape) for ratios in maps] == [(1, 4, 15, 15), (1, 4, 30, 30), (1, 4, 30, 30)]
    head_line, first, *_ = str(names).splitlines()
    assert head_line.split() == ["layer", "module", "shape", "places"]
    assert first == "2      MaxPool2d  1 x 4 x 15 x 15  15 x 15"
    assert names._repr_html_().count("<tr>") == 4


def test_the_model_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), *head(4)).eval()
    given = X.clone()
    captum_cav.layers(model, given)
    assert torch.equal(given, X)
    assert not given.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_has_no_layers_is_named() -> None:
    with pytest.raises(InputError, match="no layer of the network gives maps"):
        captum_cav.layers(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)).eval(), X)
    with pytest.raises(OptionError, match="count"):
        captum_cav.layers(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), X, 0)
