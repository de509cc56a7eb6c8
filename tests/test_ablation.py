"""Scores with features disabled: values against networks taken apart by hand, masks, tables, nothing left behind."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from captum_cav import LayerCAV
from captum_cav.ablation import Ablation, ablate, box_mask, positive_spots, resize_mask
from captum_cav.errors import CAVError, CAVTypeError, InputError, LayerError, ModelError, OptionError, TargetError
from captum_cav.visualization import spatial_map
from tests.support.networks import fixed
from tests.support.small_networks import picture, residual_net
from tests.support.traces import InjectedError, inject, left_as_it_was

WAYS = ("zero", "mean", "blur")


class Permute(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(self.dims)


class Tokens(nn.Module):
    """Maps as tokens, two class tokens before them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return torch.cat([tokens[:, :2] * 0.5, tokens], 1)


def network(layout: nn.Module | None = None) -> nn.Sequential:
    """Maps of 6 channels on 6 x 8 places out of pictures of 12 x 16 pixels, in a layout, then a head of two layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1),
        nn.ReLU(),
        layout or nn.Identity(),
        nn.Flatten(),
        nn.Linear(6 * (6 * 8 + 2 * isinstance(layout, Tokens)), 7),
        nn.Tanh(),
        nn.Linear(7, 4),
    ).double()


PICTURES = fixed(2, 3, 12, 16)
MASK = fixed(6, 8, seed=3) > 0.2


def blurred(values: np.ndarray, deviation: float, radius: tuple[int, int]) -> np.ndarray:
    """One map under a Gaussian, place by place; beyond the border it is reflected."""
    height, width = values.shape

    def reflected(index: int, length: int) -> int:
        index = abs(index)
        return index if index < length else 2 * (length - 1) - index

    result = np.zeros_like(values)
    for row in range(height):
        for column in range(width):
            total = 0.0
            for down in range(-radius[0], radius[0] + 1):
                for right in range(-radius[1], radius[1] + 1):
                    weight = np.exp(-(down**2 + right**2) / (2 * deviation**2))
                    total += weight
                    result[row, column] += (
                        weight * values[reflected(row + down, height), reflected(column + right, width)]
                    )
            result[row, column] /= total
    return result


def by_hand(values: np.ndarray, mask: np.ndarray, by: str) -> np.ndarray:
    """Maps of shape (N, C, h, w) with what is in the mask replaced, place by place."""
    changed = values.copy()
    for sample, channel in np.ndindex(values.shape[:2]):
        own = values[sample, channel]
        deviation = max(own.shape[0] / 16, 1.0)
        radius = tuple(min(int(2 * deviation), length - 1) for length in own.shape)
        instead = {"zero": np.zeros_like(own), "mean": np.full_like(own, own.mean()), "blur": None}[by]
        instead = blurred(own, deviation, radius) if instead is None else instead
        for place in zip(*np.nonzero(mask), strict=True):
            changed[sample, channel][place] = instead[place]
    return changed


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("layout", [nn.Identity(), Permute(0, 2, 3, 1), Tokens()], ids=["NCHW", "NHWC", "tokens"])
def test_scores_are_those_of_the_network_taken_apart(layout: nn.Module, by: Any) -> None:
    net = network(layout)
    found = ablate(net, PICTURES, "2", MASK, by=by)
    with torch.no_grad():
        maps = net[:2](PICTURES)
        changed = torch.from_numpy(by_hand(maps.numpy(), MASK.numpy(), by))
        # Class tokens are left as they are.
        laid = layout(changed)
        if isinstance(layout, Tokens):
            laid[:, :2] = layout(maps)[:, :2]
        expected = net[3:](laid)
    torch.testing.assert_close(found.before, net(PICTURES).detach(), rtol=0, atol=0)
    torch.testing.assert_close(found.after, expected, rtol=1e-12, atol=1e-12)
    assert (found.after - found.before).abs().max() > 1e-3
    assert torch.equal(found.mask, MASK.expand(2, 6, 8))


@pytest.mark.parametrize("by", WAYS)
def test_the_pictures_themselves_are_ablated(by: Any) -> None:
    net = network()
    mask = box_mask((0.25, 0.0, 1.0, 0.5), (12, 16))
    changed = torch.from_numpy(by_hand(PICTURES.numpy(), mask.numpy(), by))
    torch.testing.assert_close(ablate(net, PICTURES, None, mask, by=by).after, net(changed).detach())


@pytest.mark.parametrize("layer", ["1", "2"])
def test_where_all_that_follows_is_linear_scores_fall_by_the_contributions(layer: str) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6 * 5 * 7, 4)).double()
    contributions = LayerCAV(net, layer, normalize=None).attribute(PICTURES, [1, 3])
    maps = spatial_map(contributions, (12, 16))
    spots = positive_spots(maps, 0.6)
    changes = ablate(net, PICTURES, layer, spots).score_changes()[[0, 1], [1, 3]]
    torch.testing.assert_close(changes, -(maps * spots).sum((1, 2)))


def test_each_sample_has_its_own_mask() -> None:
    net = network()
    masks = torch.stack([MASK, ~MASK])
    found = ablate(net, PICTURES, net[1], masks)
    for sample in range(2):
        alone = ablate(net, PICTURES[sample : sample + 1], "1", masks[sample])
        torch.testing.assert_close(found.after[sample], alone.after[0])


def test_a_mask_of_pixels_is_brought_to_the_layer_by_area() -> None:
    net = network()
    pixels = fixed(12, 16, seed=5) > 0
    places = torch.tensor(
        [
            [int(pixels[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].sum()) > 2 for column in range(8)]
            for row in range(6)
        ]
    )
    assert 0 < int(places.sum()) < 48
    found = ablate(net, PICTURES, "1", pixels)
    assert torch.equal(found.mask[0], places)
    assert torch.equal(found.after, ablate(net, PICTURES, "1", places.numpy()).after)


def test_a_vision_transformer_is_ablated_at_its_tokens() -> None:
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5).eval()
    nn.init.normal_(net.heads.head.weight)
    x = torch.randn(1, 3, 32, 32)
    found = ablate(net, x, "encoder.layers.encoder_layer_0", box_mask((0, 0, 32, 16), (32, 32)))
    assert found.described() == "8 of 16 places of layer 'encoder.layers.encoder_layer_0' set to zero"
    # All of the last layer: the class token, which the head reads, is no place.
    last = ablate(net, x, "encoder.layers.encoder_layer_1", torch.ones(4, 4, dtype=torch.bool))
    torch.testing.assert_close(last.after, last.before)
    assert (found.after - found.before).abs().max() > 1e-3


def test_a_layer_that_is_reached_several_times_is_ablated_in_one_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x).relu_()).mean((2, 3))

    torch.manual_seed(0)
    net = Twice().double()
    mask = box_mask((0, 0, 8, 12), (12, 16))
    with torch.no_grad():
        first = net.conv(PICTURES)
        of_first = net.conv((first * ~mask).relu()).mean((2, 3))
        of_second = (net.conv(first.relu()) * ~mask).mean((2, 3))
    torch.testing.assert_close(ablate(net, PICTURES, "conv", mask, call=0).after, of_first)
    torch.testing.assert_close(ablate(net, PICTURES, "conv", mask, call=-1).after, of_second)
    with pytest.raises(LayerError, match=r"layer 'conv' was reached 2 times; choose one with call=0 \.\.\. 1 \(-1"):
        ablate(net, PICTURES, "conv", mask)
    with pytest.raises(LayerError, match=r"layer 'conv' was reached 2 times; call=2 is out of range\."):
        ablate(net, PICTURES, "conv", mask, call=2)


def test_further_arguments_structures_and_single_scores() -> None:
    class Structured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 2, 1)
            self.outer = Wrapped(self.inner)

        def forward(self, x: torch.Tensor, factor: torch.Tensor, *, bias: float = 0.0) -> torch.Tensor:
            maps, size = self.outer(x)["maps"]
            return (maps * factor).sum((1, 2, 3)) / size + bias

    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, int]]:
            return {"maps": (self.inner(x), 10)}

    net = Structured().double()
    factor = torch.tensor(3.0, dtype=torch.float64)
    found = ablate(net, (PICTURES,), "outer", torch.ones(12, 16, dtype=torch.bool), additional_forward_args=factor)
    assert found.before.shape == (2, 1)
    torch.testing.assert_close(found.before[:, 0], net(PICTURES, factor).detach())
    assert torch.equal(found.after, torch.zeros(2, 1, dtype=torch.float64))


# Tables ---------------------------------------------------------------------------------------------------------


def scored(before: list[float], after: list[float], **options: Any) -> Ablation:
    mask = torch.tensor([[[True, False], [True, True]]])
    return Ablation("layer 'head'", "zero", mask, torch.tensor([before]), torch.tensor([after]), **options)


PETS = scored(
    [11.07, 13.5, 9.0, -2.0], [8.34, 14.25, 9.5, -2.0], targets=(0,), class_names=("tiger|cat", "boxer", "pug", "x")
)


def test_ranks_and_changes() -> None:
    torch.testing.assert_close(PETS.score_changes([0, 2]), torch.tensor([[-2.73, 0.5]]))
    assert PETS.rank_changes().tolist() == [[1, 0, -1, 0]]
    assert PETS.rank_changes([2, 0]).tolist() == [[-1, 1]]
    before, after = PETS.top(2)
    assert [(one.name, one.rank_before, one.rank_after) for one in before] == [("boxer", 1, 1), ("tiger|cat", 2, 3)]
    assert [(one.name, one.rank_before, one.rank_after) for one in after] == [("boxer", 1, 1), ("pug", 3, 2)]
    assert [len(part) for part in PETS.top(99)] == [4, 4]
    assert [one.name for one in scored([1.0, 2.0], [2.0, 1.0]).standings([1])] == ["class 1"]


def test_equal_scores_rank_in_the_order_of_the_classes() -> None:
    tied = scored([1.0, 1.0, 2.0], [1.0, 1.0, 1.0])
    assert [one.index for one in tied.top()[0]] == [2, 0, 1]
    assert [(one.index, one.rank_after) for one in tied.top()[1]] == [(0, 1), (1, 2), (2, 3)]


def test_it_prints_itself() -> None:
    assert str(PETS) == repr(PETS)
    assert (
        str(PETS)
        == """\
3 of 4 places of layer 'head' set to zero
  rank  before        score  after         score  rank before
     1  boxer         13.50  boxer         14.25            1
     2  tiger|cat     11.07  pug           9.500            3
     3  pug           9.000  tiger|cat     8.340            2
     4  x            -2.000  x            -2.000            4
  tiger|cat: score 11.07 -> 8.340 (-2.73), rank 2 -> 3"""
    )


def test_markdown() -> None:
    assert (
        PETS.to_markdown(2)
        == """\
| rank | before | score | 3 of 4 places of layer 'head' set to zero | score | rank before |
|--:|---|--:|---|--:|--:|
| 1 | boxer | 13.50 | boxer | 14.25 | 1 |
| 2 | tiger\\|cat | 11.07 | pug | 9.500 | 3 |

- tiger\\|cat: score 11.07 -> 8.340 (-2.73), rank 2 -> 3"""
    )


def test_the_sample_is_named_where_there_are_several() -> None:
    found = ablate(network(), PICTURES, "1", MASK, targets=2)
    assert f"{int(MASK.sum())} of 48 places of layer '1' set to zero (sample 0 of 2)" in str(found)
    assert found.standings([2], 1)[0].score_before == pytest.approx(float(found.before[1, 2]))
    assert found.targets == (2,)


# Masks ----------------------------------------------------------------------------------------------------------


def test_boxes_in_pixels_and_fractions() -> None:
    mask = box_mask((1, 2, 3, 5), (6, 4))
    assert mask.nonzero().tolist() == [[row, column] for row in (2, 3, 4) for column in (1, 2)]
    assert torch.equal(box_mask((0.0, 0.0, 1.0, 0.5), (227, 227)), torch.arange(227)[:, None].expand(227, 227) < 114)
    assert torch.equal(box_mask((0, 0.5, 1, 1), (4, 4)), box_mask((0, 2, 4, 4), (4, 4)))
    halves = (box_mask((0, 0, 1, 0.5), (225, 225)), box_mask((0, 0.5, 1, 1.0), (225, 225)))
    assert torch.equal(halves[0], ~halves[1])


@pytest.mark.parametrize(
    "box", [(0, 0, 5, 2), (2, 0, 2, 2), (0.5, 0.5, 0.4, 1.0), (-0.1, 0.0, 1.0, 1.0), (0, 0, 0.01, 1)]
)
def test_boxes_without_pixels_are_refused(box: Any) -> None:
    said = f"the box {box} holds no pixels of a picture of width 4 and height 4, or reaches beyond it; expected"
    with pytest.raises(InputError, match=re.escape(said)):
        box_mask(box, (4, 4))
    with pytest.raises(InputError, match="the box has 2 numbers; expected left, top, right, bottom"):
        box_mask((0, 1), (4, 4))


def test_positive_spots_are_the_fewest_that_carry_the_share() -> None:
    maps = fixed(3, 5, 4, seed=2)
    for share in (0.1, 0.5, 0.9, 1.0):
        for values, spots in zip(maps, positive_spots(maps, share), strict=True):
            positive = values.clamp(min=0)
            carried = float(values[spots].sum() / positive.sum())
            assert carried >= share - 1e-9
            assert carried - float(values[spots].min() / positive.sum()) < share
            assert bool((values[spots].min() >= values[~spots]).all())
    assert torch.equal(positive_spots(maps), maps > 0)
    assert torch.equal(positive_spots(maps, above=0.7), maps > 0.7)
    assert torch.equal(positive_spots(maps, 1.0), maps > 0)
    assert not positive_spots(-maps.abs(), 0.5).any()
    # Three quarters of eight tenths are a little more than six of them in binary.
    assert int(positive_spots(torch.full((1, 8), 0.1, dtype=torch.float64), 0.75).sum()) == 6


@pytest.mark.parametrize("share", [0, 1.01, -0.5, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(OptionError, match=rf"share is {share!r}; expected a number above 0 and at most 1\."):
        positive_spots(torch.ones(2, 2), share)


def test_masks_are_resized_by_area() -> None:
    upper = box_mask((0.0, 0.0, 1.0, 0.5), (14, 14))
    assert resize_mask(upper, (7, 7)).sum(1).tolist() == [7, 7, 7, 0, 0, 0, 0]
    assert torch.equal(resize_mask(upper, (28, 28)), box_mask((0.0, 0.0, 1.0, 0.5), (28, 28)))
    assert resize_mask(torch.stack([upper, ~upper]), (2, 2)).tolist() == [
        [[True] * 2, [False] * 2],
        [[False] * 2, [True] * 2],
    ]


# What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (
            {"mask": torch.ones(3, 3) > 0},
            InputError,
            (
                "mask has shape (3, 3); expected (6, 8), the places of layer '1', or (12, 16), the pixels of the input "
                "(or one such mask for each of 2 samples). resize_mask brings other masks to either."
            ),
        ),
        ({"mask": torch.ones(3, 6, 8) > 0}, InputError, "mask has shape (3, 6, 8); expected (6, 8)"),
        ({"mask": torch.ones(8) > 0}, InputError, "mask has shape (8,); expected"),
        (
            {"mask": torch.ones(6, 8)},
            CAVTypeError,
            "mask holds torch.float32; expected booleans, as mask > threshold or positive_spots(map).",
        ),
        (
            {"mask": torch.zeros(6, 8) > 0},
            InputError,
            "mask selects none of the 6 x 8 places of layer '1' in sample 0.",
        ),
        ({"mask": torch.stack([MASK, MASK & ~MASK])}, InputError, "places of layer '1' in sample 1."),
        (
            {"mask": box_mask((0, 0, 1, 1), (12, 16))},
            InputError,
            "of the 6 x 8 places of layer '1' in sample 0, because the mask must cover more than half of a place.",
        ),
        ({"layer": "11"}, LayerError, "unknown layer '11' (did you mean '1'?)"),
        (
            {"layer": "4"},
            LayerError,
            (
                "layer '4' gives values of shape (2, 7), which have no places to disable in pictures of 12 x 16 "
                "pixels; pick a layer of maps or of a grid of tokens."
            ),
        ),
        ({"layer": 1}, CAVTypeError, "layer is a int; expected a torch.nn.Module or its qualified name."),
        ({"layer": nn.ReLU()}, LayerError, "the given layer (ReLU) does not belong to this model (Sequential)"),
        ({"by": "noise"}, OptionError, 'by is \'noise\'; expected "zero", "mean", "blur", or a number.'),
        ({"targets": 4}, TargetError, "there is no class 4: the model gives 4 scores, 0 to 3."),
        ({"targets": ["tabby"]}, CAVTypeError, "a class is 'tabby' (str); expected its index."),
        ({"class_names": ("a", "b")}, InputError, "class_names lists 2 names for 4 classes; expected one for each."),
        (
            {"inputs": PICTURES[0]},
            InputError,
            (
                "inputs of shape (3, 12, 16) are 3 samples of 16 places, and mask has shape (6, 8); expected pictures "
                "of shape (N, C, H, W) with such a mask: inputs[None] is one picture."
            ),
        ),
        ({"inputs": (PICTURES > 0,)}, InputError, "inputs is a torch.bool tensor of shape (2, 3, 12, 16); expected"),
        ({"inputs": "cat.png"}, InputError, "inputs is a str; expected floating-point pictures"),
        (
            {"inputs": PICTURES * torch.nan},
            ModelError,
            "the score is not finite in samples 0, 1: NaN or infinity first comes out of module '0' (Conv2d).",
        ),
        ({"forward_func": "net"}, CAVTypeError, "forward_func is a str"),
        (
            {"forward_func": network()[:2], "layer": "1"},
            InputError,
            "the model returned scores of shape (2, 6, 6, 8); expected (N, classes).",
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else None,
)
def test_what_does_not_fit_is_named(arguments: dict[str, Any], kind: type[CAVError], said: str) -> None:
    given = {"forward_func": network(), "inputs": PICTURES, "layer": "1", "mask": MASK, **arguments}
    with pytest.raises(kind, match=re.escape(said)):
        ablate(**given)


def test_a_layer_that_is_not_reached_or_gives_several_tensors_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.never = nn.Conv2d(3, 3, 1)
            self.pair = Pair()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum(self.pair(x)).mean((2, 3))

    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, 2 * x

    mask = torch.ones(12, 16, dtype=torch.bool)
    with pytest.raises(LayerError, match=r"layer 'never' was not reached by the forward pass; pick one that"):
        ablate(Odd().double(), PICTURES, "never", mask)
    with pytest.raises(LayerError, match=r"layer 'pair' gives 2 tensors; pick a layer that gives one"):
        ablate(Odd().double(), PICTURES, "pair", mask)
    with pytest.raises(LayerError, match=r"layer '1' is a name, but forward_func is not a module to look it up in"):
        ablate(lambda x: network()(x), PICTURES, "1", MASK)


# Nothing is left ------------------------------------------------------------------------------------------------

ABLATIONS: dict[str, Callable[[nn.Module, torch.Tensor], Any]] = {
    **{
        by: lambda net, x, by=by: ablate(net, x, "block1.conv", box_mask((0, 0, 12, 7), (12, 12)), by=by) for by in WAYS
    },
    "in-place": lambda net, x: ablate(net, x, "stem.1", torch.ones(10, 10) > 0),
    "picture": lambda net, x: ablate(net, x, None, box_mask((0, 0, 12, 7), (12, 12))),
}


@pytest.mark.parametrize("ablation", list(ABLATIONS.values()), ids=list(ABLATIONS))
def test_an_ablation_leaves_nothing(ablation: Callable[[nn.Module, torch.Tensor], Ablation]) -> None:
    net, x = residual_net(), picture()
    expected = net(x)
    with left_as_it_was(net, x):
        found = ablation(net, x)
    assert not found.before.requires_grad
    assert not found.after.requires_grad
    assert (found.after - found.before).abs().max() > 1e-4
    assert torch.equal(net(x), expected)
    assert torch.equal(found.before, expected)


@pytest.mark.parametrize("kind", [InjectedError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["stem.0", "block1.conv", "head", ""])
def test_a_module_that_raises_leaves_nothing(
    name: str, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = residual_net(), picture()
    error = kind("on purpose")
    inject(monkeypatch, net.get_submodule(name), error)
    for ablation in ABLATIONS.values():
        with left_as_it_was(net, x), pytest.raises(kind) as caught:
            ablation(net, x)
        assert caught.value is error


def test_a_refusal_leaves_nothing() -> None:
    net, x = residual_net(), picture()
    net.block2.norm.train()
    said = r"module 'block2\.norm' \(BatchNorm2d\) is in training mode, where it .* call model\.eval\(\) first\."
    for ablation in ABLATIONS.values():
        with left_as_it_was(net, x), pytest.raises(ModelError, match=said):
            ablation(net, x)
    net.block2.norm.eval()
    for mask in (torch.zeros(10, 10) > 0, torch.ones(7, 7) > 0):
        with left_as_it_was(net, x), pytest.raises(InputError, match="mask"):
            ablate(net, x, "stem.1", mask)


def test_both_runs_draw_the_same_random_numbers() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x + torch.rand_like(x))
            return x.relu().mean((2, 3)) + torch.rand(4)

    net, x = Noisy().eval(), picture()
    with left_as_it_was(net, x):
        found = ablate(net, x, "first", box_mask((0, 0, 1, 1), (12, 12)))
    with torch.random.fork_rng():
        torch.testing.assert_close(found.before, net(x).detach())
    # One place of 144 was disabled; new numbers would have moved the scores by far more.
    assert found.score_changes().abs().max() < 0.05


def test_a_model_that_writes_into_inputs_and_activations_is_explained() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x.mul_(2)).sub_(1).mean((2, 3))

    net, x = Writing().double(), PICTURES.clone()
    mask = box_mask((0, 0, 8, 12), (12, 16))
    with left_as_it_was(net, x):
        found = ablate(net, x, "conv", mask)
    with torch.no_grad():
        torch.testing.assert_close(found.before, (net.conv(2 * x) - 1).mean((2, 3)))
        torch.testing.assert_close(found.after, (net.conv(2 * x) * ~mask - 1).mean((2, 3)))


def test_no_graph_is_built() -> None:
    enabled: list[bool] = []

    class Noting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            enabled.append(torch.is_grad_enabled())
            with torch.enable_grad():
                return x * torch.ones((), dtype=x.dtype, requires_grad=True)

    net = network(Noting())
    net.append(Noting())
    found = ablate(net, PICTURES, "1", MASK)
    assert enabled == [False] * 4
    assert not found.before.requires_grad
    assert not found.after.requires_grad


def test_hooks_of_the_user_stay_and_run() -> None:
    net, x = network(), PICTURES
    net[1].register_forward_hook(lambda *args: args[2] * 2)
    handed: list[Any] = []
    net[1].register_forward_hook(lambda *args: handed.append(args[2]))
    found = ablate(net, x, "1", torch.ones(6, 8) > 0)
    torch.testing.assert_close(found.before, net(x).detach())
    torch.testing.assert_close(found.after, net[3:](torch.zeros(2, 6, 6, 8).double()).detach())
    assert len(handed) == 3


def test_inference_mode_is_fine() -> None:
    net = network()
    with torch.inference_mode():
        found = ablate(net, PICTURES, "1", MASK)
    assert torch.equal(found.after, ablate(net, PICTURES, "1", MASK).after)


def test_another_thread_does_not_meet_the_hook() -> None:
    net = network()
    expected = net(PICTURES).detach()
    elsewhere: list[torch.Tensor] = []

    class Meanwhile(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if threading.current_thread() is threading.main_thread():
                thread = threading.Thread(target=lambda: elsewhere.append(net(PICTURES).detach()))
                thread.start()
                thread.join()
            return x

    net[2] = Meanwhile()
    found = ablate(net, PICTURES, "1", MASK)
    assert len(elsewhere) == 2
    for scores in elsewhere:
        assert torch.equal(scores, expected)
    assert not torch.equal(found.after, expected)
