"""Measured effects of cells against what enumeration and formulas say, and the agreement of maps with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import metrics
from captum_cav.errors import CAVTypeError, InputError, ModelError, OptionError, TargetError
from captum_cav.metrics import CausalEffects, agreement_with_effects, causal_effects
from tests.support.small_networks import seeded

Score = Callable[[torch.Tensor], torch.Tensor]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def effects_of(score: Score, count: int, **options: Any) -> CausalEffects:
    """The effects of places that are 1 if shown and 0 if hidden."""
    return causal_effects(score, torch.ones(1, count, dtype=torch.float64), cells=count, baseline=0.0, **options)


def banzhaf_by_enumeration(score: Score, count: int) -> torch.Tensor:
    """Mean with minus mean without, over all subsets: shape (K, count)."""
    subsets = torch.tensor(list(itertools.product([0.0, 1.0], repeat=count)), dtype=torch.float64)
    values = score(subsets)
    columns = [values[subsets[:, place] > 0].mean(0) - values[subsets[:, place] == 0].mean(0) for place in range(count)]
    return torch.stack(columns, 1)


def odd_function(count: int) -> Score:
    """Two classes with interactions of two, of three and of all places."""
    single, pairs, triples = draw(2, count), draw(2, count, count, seed=1), draw(2, count, count, count, seed=2)

    def score(x: torch.Tensor) -> torch.Tensor:
        by_pairs = torch.einsum("ni,kij,nj->nk", x, pairs, x)
        by_triples = torch.einsum("ni,nj,nl,kijl->nk", x, x, x, triples)
        return x @ single.T + by_pairs + by_triples + x.prod(1, keepdim=True)

    return score


def test_all_subsets_give_the_exact_values() -> None:
    score = odd_function(6)
    found = effects_of(score, 6, masks=64)
    torch.testing.assert_close(found.effects[0], banzhaf_by_enumeration(score, 6))
    torch.testing.assert_close(found.halves, found.effects.expand(2, -1, -1, -1))
    assert found.reliability.tolist() == [[1, 1]]


def test_the_fit_is_the_nearest_linear_function() -> None:
    """The best linear approximation over all subsets has the Banzhaf values as its coefficients."""
    score = odd_function(5)
    subsets = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)), dtype=torch.float64)
    design = torch.cat([torch.ones(32, 1, dtype=torch.float64), subsets], 1)
    coefficients = torch.linalg.lstsq(design, score(subsets)).solution[1:].T
    torch.testing.assert_close(effects_of(score, 5).effects[0], coefficients)


def test_random_masks_estimate_the_exact_values() -> None:
    """In halves with independent errors, the better the more masks, and better than differences of means."""
    score = odd_function(12)
    exact = effects_of(score, 12, masks=4096, batch_size=4096).effects
    errors = {}
    for masks in (64, 1024):
        found = [effects_of(score, 12, masks=masks, seed=seed, batch_size=1024) for seed in range(20)]
        wrong = torch.stack([one.effects for one in found]) - exact
        of_halves = torch.stack([one.halves for one in found], 1) - exact
        errors[masks] = float(wrong.square().mean().sqrt())
        assert abs(float(wrong.mean())) < 3 * errors[masks] / (wrong.numel() ** 0.5), "unbiased"
        correlation = torch.corrcoef(of_halves.flatten(1))[0, 1]
        assert abs(float(correlation)) < 0.15
    assert errors[1024] < errors[64] / 3

    def by_means(seed: int) -> torch.Tensor:
        shown = torch.rand(1024, 12, generator=torch.Generator().manual_seed(seed)) < 0.5
        values = score(shown.double())
        return torch.stack([values[row].mean(0) - values[~row].mean(0) for row in shown.T], 1)

    of_means = torch.stack([by_means(seed) - exact[0] for seed in range(20)]).square().mean().sqrt()
    assert errors[1024] < float(of_means) / 2


@pytest.mark.parametrize("pairs", [False, True], ids=["additive", "pairs interact"])
def test_few_masks_are_exact_without_interactions_of_three(pairs: bool) -> None:
    """A mask and its complement cancel what two cells do together: each cell gets half of it."""
    single, together = draw(3, 16), draw(3, 16, 16, seed=1) * pairs
    score = lambda x: x @ single.T + torch.einsum("ni,kij,nj->nk", x, together, x)  # noqa: E731
    alone = together.diagonal(dim1=1, dim2=2)
    expected = single + alone + (together.sum(1) + together.sum(2) - 2 * alone) / 2
    found = effects_of(score, 16, masks=64)
    torch.testing.assert_close(found.effects[0], expected)
    torch.testing.assert_close(found.reliability, torch.ones(1, 3, dtype=torch.float64))


def test_reliability_is_the_correlation_with_a_second_measurement() -> None:
    """Spearman and Brown: the correlation of two whole measurements, foretold by the halves of each."""
    score = odd_function(14)
    found = [effects_of(score, 14, masks=128, seed=seed, batch_size=128) for seed in range(40)]
    reliability = torch.stack([one.reliability for one in found]).mean(0)
    again = [metrics.spearman(one.effects[0], other.effects[0]) for one, other in itertools.pairwise(found)]
    difference = reliability - torch.stack(again).mean(0)
    assert 0.3 < float(reliability.min()) < float(reliability.max()) < 0.95, "some noise, and not only noise"
    assert float(difference.abs().max()) < 0.08


def picture_net() -> nn.Module:
    with seeded():
        body = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
        return nn.Sequential(*body).double().eval()


@pytest.mark.parametrize("cells", [2, (2, 2), [2, 2]], ids=str)
def test_cells_of_a_picture(cells: Any) -> None:
    """Hiding by hand: the sides of 7 and 5 places have first cells that are one place larger."""
    net, pictures = picture_net(), draw(2, 3, 7, 5)
    found = causal_effects(net, pictures, cells=cells, baseline="mean", batch_size=3)
    means = pictures.mean((2, 3), keepdim=True)
    boxes = [
        (slice(0, 4), slice(0, 3)),
        (slice(0, 4), slice(3, 5)),
        (slice(4, 7), slice(0, 3)),
        (slice(4, 7), slice(3, 5)),
    ]

    def shown(flags: tuple[int, ...]) -> torch.Tensor:
        made = pictures.clone()
        for (rows, columns), flag in zip(boxes, flags, strict=True):
            if not flag:
                made[:, :, rows, columns] = means
        return net(made).detach()

    values = {flags: shown(flags) for flags in itertools.product([0, 1], repeat=4)}
    for cell in range(4):
        change = [values[f] if f[cell] else -values[f] for f in values]
        torch.testing.assert_close(found.effects[:, :, cell], torch.stack(change).sum(0) / 8)


def test_the_blur_is_the_default_for_pictures() -> None:
    net, pictures = picture_net(), draw(1, 3, 7, 5)
    default, blurred = (causal_effects(net, pictures, cells=2, **options) for options in ({}, {"baseline": "blur"}))
    assert torch.equal(default.effects, blurred.effects)
    assert not torch.allclose(default.effects, causal_effects(net, pictures, cells=2, baseline="mean").effects)


def test_labels_as_captums_feature_mask() -> None:
    """Whatever the shape of the labels, and with places that are never hidden."""
    net, pictures = picture_net(), draw(2, 3, 4, 4)
    by_grid = causal_effects(net, pictures, cells=2, baseline="zero").effects
    labels = torch.arange(2).repeat_interleave(2)
    grid = labels[:, None] * 2 + labels
    for shaped in (grid, grid[None], grid[None, None], grid.expand(2, 4, 4), grid.expand(2, 1, 4, 4), grid.int()):
        assert torch.equal(causal_effects(net, pictures, cells=shaped, baseline="zero").effects, by_grid)
    swapped = torch.stack([grid, 3 - grid])
    found = causal_effects(net, pictures, cells=swapped, baseline="zero")
    torch.testing.assert_close(found.effects, torch.stack([by_grid[0], by_grid[1].flip(-1)]))

    kept = torch.where(grid == 3, -1, grid)
    of_three = causal_effects(net, pictures, cells=kept, baseline="zero").effects
    assert of_three.shape == (2, 5, 3)
    values = {
        flags: net(pictures * torch.tensor([*flags, 1])[grid]).detach() for flags in itertools.product([0, 1], repeat=3)
    }
    expected = sum(values[f] if f[1] else -values[f] for f in values) / 4
    torch.testing.assert_close(of_three[:, :, 1], expected)


def test_tokens_series_signals_embeddings_and_volumes() -> None:
    ids = torch.tensor([[5, 2, 8, 1]])
    values = draw(10, 3)
    values[0] = 0
    found = causal_effects(lambda ids: values[ids].sum(1), ids, cells=4, baseline=0)
    torch.testing.assert_close(found.effects[0], values[ids[0]].T)
    with pytest.raises(OptionError, match=r"tokenizer\.mask_token_id"):
        causal_effects(lambda ids: values[ids].sum(1), ids, cells=4)

    series = draw(1, 6)
    found = causal_effects(lambda x: x[:, :2].sum(1, keepdim=True), series, cells=3)  # the mean is the default
    expected = torch.stack([series[0, :2].sum() - 2 * series.mean(), torch.zeros(()), torch.zeros(())])
    torch.testing.assert_close(found.effects[0, 0], expected.double())

    embeddings = draw(1, 4, 3)
    found = causal_effects(lambda x: x.sum(1), embeddings, cells=4, channels=-1)  # zero is the default
    torch.testing.assert_close(found.effects[0], embeddings[0].T)
    signals = embeddings.mT
    found = causal_effects(lambda x: x.sum(2), signals, cells=4, baseline="zero")
    torch.testing.assert_close(found.effects[0], signals[0])

    volumes = draw(1, 1, 2, 4, 4)
    found = causal_effects(lambda x: x.flatten(1).sum(1), volumes, cells=(1, 2, 2), baseline="zero")
    expected = volumes[0, 0].sum(0).unfold(0, 2, 2).unfold(1, 2, 2).sum((2, 3)).flatten()
    torch.testing.assert_close(found.effects[0, 0], expected)


def test_targets_in_captums_forms() -> None:
    net, pictures = picture_net(), draw(2, 3, 4, 4)
    everything = causal_effects(net, pictures, cells=2).effects
    found = causal_effects(net, pictures, [3, torch.tensor([0, 4])], cells=2).effects
    torch.testing.assert_close(found[:, 0], everything[:, 3])
    torch.testing.assert_close(found[:, 1], torch.stack([everything[0, 0], everything[1, 4]]))
    stacked = lambda x: torch.stack([net(x), 2 * net(x)], 1)  # noqa: E731
    torch.testing.assert_close(causal_effects(stacked, pictures, [(1, 3)], cells=2).effects[:, 0], 2 * everything[:, 3])
    with pytest.raises(InputError, match=r"returned shape \(8, 2, 5\); expected \(N, classes\).*targets=\[\(0, 0\)\]"):
        causal_effects(stacked, pictures, cells=2)
    assert causal_effects(stacked, pictures, [(0, 0)], cells=2).effects.shape == (2, 1, 4), "what the message advises"
    with pytest.raises(TargetError):
        causal_effects(net, pictures, [5], cells=2)
    with pytest.raises(CAVTypeError, match="targets is 3; expected a list of targets"):
        causal_effects(net, pictures, 3, cells=2)  # type: ignore[arg-type]


def test_probabilities_and_squashed_models() -> None:
    net, pictures = picture_net(), draw(1, 3, 4, 4)
    ending = nn.Sequential(net, nn.Softmax(1))
    opaque = lambda x: torch.from_numpy(net(x).softmax(1).detach().numpy())  # noqa: E731
    expected = causal_effects(opaque, pictures, cells=2).effects
    for model in (net, ending):
        found = causal_effects(model, pictures, cells=2, output="probability").effects
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        causal_effects(ending, pictures, cells=2).effects, causal_effects(net, pictures, cells=2).effects
    )


def test_the_batch_and_the_other_samples_do_not_matter() -> None:
    net, pictures = picture_net(), draw(3, 3, 8, 8)
    options: dict[str, Any] = {"cells": 4, "masks": 64}
    state = torch.get_rng_state()
    together = causal_effects(net, pictures, batch_size=7, **options)
    assert torch.equal(torch.get_rng_state(), state)
    for number in range(3):
        alone = causal_effects(net, pictures[number : number + 1], batch_size=64, **options)
        torch.testing.assert_close(alone.effects[0], together.effects[number])
        torch.testing.assert_close(alone.halves[:, 0], together.halves[:, number])
    other = causal_effects(net, pictures, seed=1, **options)
    assert not torch.allclose(other.effects, together.effects)
    assert together.effects.dtype == torch.float64


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "few masks": ({"masks": 60}, OptionError, "masks is 60 for 16 cells; expected a multiple of 4 of at least 64, or"),
    "odd masks": ({"masks": 514}, OptionError, "expected a multiple of 4"),
    "no cells": ({"cells": 0}, OptionError, "cells is 0; expected a number of cells along each side, one for each of"),
    "one side": ({"cells": (2,)}, OptionError, r"one for each of \(h, w\), or integers of shape \(8, 8\)"),
    "many cells": ({"cells": 9}, InputError, "8 x 8 places cannot be divided into 9 x 9 cells"),
    "labels of floats": ({"cells": torch.zeros(8, 8)}, InputError, "cells is torch.float32"),
    "labels of another shape": (
        {"cells": torch.zeros(8, 7).long()},
        InputError,
        r"expected integers of shape \(8, 8\)",
    ),
    "a gap": (
        {"cells": 2 * torch.eye(8).long()},
        InputError,
        "sample 0 has no place in cell 1; expected places in each",
    ),
    "negative": ({"cells": torch.eye(8).long() - 2}, InputError, "numbers from -2 to -1; expected numbers from 0 on"),
    "output": ({"output": "odds"}, OptionError, "output is 'odds'"),
    "batch": ({"batch_size": 0}, OptionError, "batch_size is 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    options, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        causal_effects(picture_net(), draw(1, 3, 8, 8), **options)


def test_scores_that_are_not_finite() -> None:
    with pytest.raises(ModelError, match="the score is"):
        causal_effects(lambda x: x.sum((1, 2, 3))[:, None].log(), -torch.ones(1, 1, 4, 4), cells=2, baseline="zero")


def test_classes_are_picked_for_all_samples_or_for_each() -> None:
    found = CausalEffects(draw(2, 5, 4), draw(2, 2, 5, 4), torch.arange(4)[None])
    same, each = found.of([4, 0]), found.of(torch.tensor([[1, 2], [3, 0]]))
    assert torch.equal(same.effects, found.effects[:, [4, 0]])
    assert torch.equal(same.halves, found.halves[:, :, [4, 0]])
    assert torch.equal(each.effects, torch.stack([found.effects[0, [1, 2]], found.effects[1, [3, 0]]]))
    assert torch.equal(each.reliability[0], found.reliability[0, [1, 2]])
    for wrong, message in (
        ([5], "positions that do not exist; expected 0 to 4"),
        ([[0], [1], [2]], "3 rows for 2 samples"),
        ([0.5], "expected integers of shape"),
    ):
        with pytest.raises(InputError, match=message):
            found.of(wrong)  # type: ignore[arg-type]


def measured(classes: int = 4, samples: int = 2, seed: int = 3) -> CausalEffects:
    effects = draw(samples, classes, 16, seed=seed)
    noise = draw(2, samples, classes, 16, seed=seed + 1)
    labels = torch.arange(16).reshape(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)[None]
    return CausalEffects(effects, effects + 0.3 * noise, labels)


def test_the_effects_as_maps_agree_and_random_maps_do_not() -> None:
    found = measured(samples=200)
    maps = found.effects.reshape(200, 4, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    perfect = agreement_with_effects(maps, found, own=2)
    for value in (perfect.own, perfect.absent, perfect.interaction):
        torch.testing.assert_close(value, torch.ones(200, dtype=torch.float64))
    chance = agreement_with_effects(draw(200, 4, 8, 8, seed=9), found)
    for value in (chance.own, chance.absent, chance.interaction):
        assert abs(float(value.mean())) < 0.06
        assert bool(value.abs().max() < 0.95)
    for ceiling in (perfect.own_ceiling, perfect.absent_ceiling, perfect.interaction_ceiling):
        assert 0.9 < float(ceiling.mean()) < 1
    torch.testing.assert_close(perfect.own_ceiling, found.reliability[:, 2].sqrt())


def test_which_class_is_there() -> None:
    found, maps = measured(), draw(2, 4, 8, 8, seed=9)
    first, second = (agreement_with_effects(maps, found, own) for own in (1, 3))
    for own in ([1, 3], torch.tensor([1, 3])):
        mixed = agreement_with_effects(maps, found, own)
        torch.testing.assert_close(mixed.own, torch.stack([first.own[0], second.own[1]]))
        torch.testing.assert_close(mixed.absent, torch.stack([first.absent[0], second.absent[1]]))
    cells = maps.unfold(2, 2, 2).unfold(3, 2, 2).sum((4, 5)).flatten(2)
    by_class = torch.stack([metrics.spearman(cells[:, k], found.effects[:, k]) for k in range(4)], 1)
    torch.testing.assert_close(first.own, by_class[:, 1])
    torch.testing.assert_close(first.absent, by_class[:, [0, 2, 3]].mean(1))


def test_interaction_sees_what_differs_between_classes() -> None:
    """A part that all classes share does not count, and neither does the unit of a class's map."""
    own = draw(1, 3, 16, seed=4)
    own = own - own.mean(2, keepdim=True)
    own = own / own.square().mean(2, keepdim=True).sqrt()
    found = CausalEffects(own, torch.stack([own, own]), torch.arange(16).reshape(1, 4, 4))
    factors = torch.tensor([1.0, 5.0, 0.1], dtype=torch.float64)[:, None]
    scaled = agreement_with_effects((factors * own + 2).reshape(1, 3, 4, 4), found)
    torch.testing.assert_close(scaled.interaction, torch.ones(1, dtype=torch.float64))
    mean_of_all = factors * own.mean(1, keepdim=True)
    same = agreement_with_effects(mean_of_all.reshape(1, 3, 4, 4), found)
    assert bool(same.own.isfinite().all())
    assert bool(same.interaction.isnan().all()), "the same map for all classes has no interaction"
    opposite = agreement_with_effects(-own.reshape(1, 3, 4, 4), found)
    torch.testing.assert_close(opposite.interaction, -torch.ones(1, dtype=torch.float64))


def test_one_class_alone_has_no_absent_ones() -> None:
    found = measured(classes=1)
    result = agreement_with_effects(draw(2, 1, 4, 4), found)
    assert bool(result.own.isfinite().all())
    for value in (result.absent, result.interaction, result.absent_ceiling, result.interaction_ceiling):
        assert bool(value.isnan().all())


def test_places_that_were_never_hidden_do_not_count() -> None:
    labels = torch.tensor([-1, 0, 1, 2, -1])
    effects = torch.tensor([[[1.0, 2.0, 3.0]]], dtype=torch.float64)
    found = CausalEffects(effects, torch.stack([effects] * 2), labels[None])
    result = agreement_with_effects(torch.tensor([[[9.0, 1.0, 2.0, 3.0, -9.0]]]), found)
    assert result.own.tolist() == [1.0]
    each = CausalEffects(effects.expand(2, 1, 3), effects.expand(2, 2, 1, 3), torch.stack([labels, labels.flip(0)]))
    result = agreement_with_effects(torch.tensor([[[9.0, 1.0, 2.0, 3.0, -9.0]]]).expand(2, 1, 5), each)
    assert result.own.tolist() == [1.0, -1.0]


def test_wrong_maps_and_classes() -> None:
    found = measured()
    for maps, own, message in (
        (torch.ones(2, 3, 8, 8), 0, "expected a map for each of 2 samples and 4 classes"),
        (torch.ones(2, 4, 8), 0, "expected a map for each of 2 samples"),
        ([1.0], 0, "maps is list"),
        (torch.full((2, 4, 8, 8), torch.nan), 0, "NaN or infinity"),
        (torch.ones(2, 4, 8, 8), 4, "own is 4; expected positions from 0 to 3"),
        (torch.ones(2, 4, 8, 8), [0, 1, 2], "one for each of 2 samples"),
        (torch.ones(2, 4, 8, 8), 0.5, "expected the position of a class"),
    ):
        with pytest.raises(InputError, match=message):
            agreement_with_effects(maps, found, own)  # type: ignore[arg-type]


def test_the_measure_is_the_agreement_for_the_class() -> None:
    net, inputs = picture_net(), draw(3, 3, 8, 8)
    maps, targets = draw(3, 4, 4, seed=2), [0, 4, 2]
    for baseline in (None, "zero"):
        effects = causal_effects(net, inputs, cells=4, masks=128, baseline=baseline)  # type: ignore[arg-type]
        expected = agreement_with_effects(maps[:, None], effects.of(torch.tensor(targets)[:, None])).own
        found = metrics.effect_agreement(net, inputs, maps, targets, baseline=baseline)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected)
    with pytest.raises(InputError):
        metrics.effect_agreement(net, inputs, maps[:2], targets)
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(InputError, match="expected one number for each token"):
        metrics.effect_agreement(lambda ids: ids.double(), ids, torch.ones(1, 2), 0, cells=3, baseline=0)
