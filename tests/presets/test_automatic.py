"""rules="auto": which preset a kind of network has, and that the choice is told."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torchvision.ops import FrozenBatchNorm2d

from captum_cav import InputCAV, LayerCAV, presets, zoo
from captum_cav.errors import OptionError
from captum_cav.explanation import explain

#: What is recommended for convolutional networks.
CONVOLUTIONAL = "absolute_epsilon_flat"
#: What is recommended for convolutional networks without norms.
PLAIN = "gamma"


def convolutional(norm: Callable[[int], nn.Module] | None) -> nn.Sequential:
    torch.manual_seed(0)
    norms = [[] if norm is None else [norm(4)] for _ in range(2)]
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), *norms[0], nn.ReLU(), nn.Conv2d(4, 4, 3), *norms[1], nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip


class Sum(nn.Module):
    """Computes with functions alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).sum(1, keepdim=True)


class Patches(nn.Module):
    """A small vision transformer: one convolution in front of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.body = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Rescaled(nn.BatchNorm2d):
    """A batch norm of somebody else."""


KINDS = {
    "convolutions": (
        lambda: convolutional(None), PLAIN, "2 2-D convolutions, and no attention, norm or recurrent layer"
    ),
    "convolutions with normed weights": (
        lambda: nn.Sequential(weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), *convolutional(None)[2:]), PLAIN, "norm or"
    ),
    "convolutions with local response norm": (lambda: convolutional(nn.LocalResponseNorm), PLAIN, "norm or recurrent"),
    "convolutions with group norm": (
        lambda: convolutional(lambda width: nn.GroupNorm(2, width)), CONVOLUTIONAL, "2 2-D convolutions"
    ),
    "convolutions with frozen batch norm": (
        lambda: convolutional(FrozenBatchNorm2d), CONVOLUTIONAL, "2 2-D convolutions"
    ),
    "convolutions with batch norm": (lambda: convolutional(nn.BatchNorm2d), CONVOLUTIONAL, "2 2-D convolutions"),
    "convolutions with a batch norm of another class": (
        lambda: convolutional(Rescaled), CONVOLUTIONAL, "2 2-D convolutions"
    ),
    "one convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten(), nn.Linear(2, 3)), "paper", "fewer than two"
    ),
    "dense layers": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), "paper", "fewer than two"),
    "a vision transformer": (Patches, "paper", "attention"),
    "convolutions with layer norms": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 2, 3), nn.LayerNorm([2, 6, 6]), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(32, 3)
        ),
        "paper",
        "layer norm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_network_has_its_preset(kind: str) -> None:
    make, name, reason = KINDS[kind]
    model, x = make().eval(), torch.rand(2, 3, 8, 8)
    chosen = presets.auto(model)
    assert dict(chosen) == dict(presets.PRESETS[name]())
    assert chosen.title.startswith(f"auto: {name}, as the model has ")
    assert reason in chosen.title
    assert presets.name_for("auto", model) == name
    assert torch.equal(InputCAV(model, rules="auto").attribute(x, 1), InputCAV(model, rules=name).attribute(x, 1))


def test_a_recurrent_network_has_the_rules_of_the_paper() -> None:
    chosen = presets.auto(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.GRU(2, 2)))
    assert chosen.title == "auto: paper, as the model has a recurrent layer"


def test_the_choice_is_printed() -> None:
    model = convolutional(nn.BatchNorm2d)
    cav = LayerCAV(model, "1", rules="auto")
    title = (
        f"auto: {CONVOLUTIONAL}, as the model has 2 2-D convolutions, and no attention, layer norm or recurrent layer"
    )
    assert f"rules='auto: {CONVOLUTIONAL}'" in repr(cav)
    assert repr(presets.auto(model)).splitlines()[0] == f"preset {title}"
    for table in (
        cav.explain_rules(torch.rand(1, 3, 8, 8)),
        InputCAV(model, rules="auto").explain_rules(torch.rand(1, 3, 8, 8)),
    ):
        assert str(table).splitlines()[0] == title
        assert str(table).splitlines()[1].startswith("module")
        assert str(pickle.loads(pickle.dumps(table))) == str(table)  # noqa: S301
    assert str(LayerCAV(model, "1", rules="pinpoint").explain_rules(torch.rand(1, 3, 8, 8))).startswith("module")


def test_a_changed_copy_names_no_choice_and_its_keys_win() -> None:
    changed = presets.auto(convolutional(nn.BatchNorm2d)) | {F.conv2d: presets.gamma()[F.conv2d]}
    assert changed[F.conv2d] == presets.gamma()[F.conv2d]
    assert repr(changed).startswith(f"preset auto: {CONVOLUTIONAL}, changed\n")


@pytest.mark.parametrize(("model", "name"), [(lambda x: x.flatten(1), "function"), (Sum(), "Sum")])
def test_without_layers_nothing_is_guessed(model: object, name: str) -> None:
    with pytest.raises(OptionError, match=f'rules="auto" goes by the layers .* but {name} has none; expected the name'):
        InputCAV(model, rules="auto")  # type: ignore[arg-type]
    assert InputCAV(model, rules="paper").attribute(torch.rand(1, 2), 0).shape == (1, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["autoo", "Auto"])
def test_a_name_that_is_nearly_auto_is_suggested(name: str) -> None:
    with pytest.raises(OptionError, match=r"did you mean 'auto'\?\); expected one of paper, epsilon, .*, auto"):
        presets.find(name, convolutional(None))
    with pytest.raises(OptionError, match=f"unknown preset {name!r}"):
        presets.name_for(name, convolutional(None))


def test_an_explanation_has_the_name_of_the_chosen_preset() -> None:
    model = convolutional(nn.BatchNorm2d)
    network = zoo.Network("small", model, from_picture, lambda picture: picture, ("one", "two", "three"))
    picture = zoo.demo_picture().resize((16, 16))
    found, expected = (explain(network, picture, [1], ["1"], rules=rules) for rules in ("auto", CONVOLUTIONAL))
    assert found.rules == CONVOLUTIONAL
    assert str(found.table()) == str(expected.table())


def from_picture(picture: object) -> torch.Tensor:
    return torch.linspace(0, 1, 3 * 16 * 16).reshape(3, 16, 16)
