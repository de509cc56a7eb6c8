"""Measures of maps of token ids, embeddings, series and signals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, metrics
from captum_cav.ablation.disabling import replacement
from captum_cav.errors import InputError, OptionError
from captum_cav.metrics.resolution import at_size
from tests.support.small_networks import seeded

LENGTH, CHANNELS, MASK = 6, 4, 0
IDS = torch.tensor([[5, 2, 8, 1, 3, 7], [4, 4, 9, 6, 1, 2]])


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Reader(nn.Module):
    """A classifier of tokens in which the order of the tokens matters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, CHANNELS)
        self.mix = nn.Linear(CHANNELS, CHANNELS)
        self.head = nn.Linear(LENGTH * CHANNELS, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.read(self.embedding(ids))

    def read(self, embeddings: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(embeddings).tanh().flatten(1))


def reader() -> Reader:
    with seeded():
        return Reader().double().eval()


def area_by_hand(
    net: Any, whole: torch.Tensor, replaced: torch.Tensor, ranking: list[int], steps: int, insert: bool
) -> float:
    """The area of one sample, place by place; ``whole`` and ``replaced`` have shape (T, ...)."""
    curve = []
    for step in range(steps + 1):
        now = (replaced if insert else whole).clone()
        for place in ranking[: -(-step * len(ranking) // steps)]:
            now[place] = (whole if insert else replaced)[place]
        curve.append(float(net(now[None]).softmax(1)[0, 1].detach()))
    return float(torch.trapezoid(torch.tensor(curve, dtype=torch.float64)) / steps)


def ranking_of(row: torch.Tensor, among: list[int] | None = None) -> list[int]:
    return sorted(range(len(row)) if among is None else among, key=lambda place: -float(row[place]))


@pytest.mark.parametrize("insert", [False, True])
@pytest.mark.parametrize("steps", [1, 4, 6, 9])
@pytest.mark.parametrize("keep", [False, True])
def test_tokens_are_removed_in_the_order_of_the_map(insert: bool, steps: int, keep: bool) -> None:
    net, maps = reader(), numbers(2, LENGTH)
    kept = torch.zeros_like(IDS, dtype=torch.bool)
    if keep:
        kept[0, [0, 5]] = kept[1, 2] = True
    expected = []
    for row, row_map, stays in zip(IDS, maps, kept, strict=True):
        instead = torch.where(stays, row, MASK)
        ranking = ranking_of(row_map, (~stays).nonzero().flatten().tolist())
        expected.append(area_by_hand(net, row, instead, ranking, steps, insert))
    measured = metrics.insertion if insert else metrics.deletion
    found = measured(net, IDS, maps, 1, steps=steps, baseline=MASK, keep=kept if keep else None)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("insert", [False, True])
@pytest.mark.parametrize("baseline", [None, "zero", "mean", "blur", 0.5])
def test_embeddings_series_and_signals_are_removed_place_by_place(insert: bool, baseline: Any) -> None:
    net, x, maps = reader(), numbers(2, LENGTH, CHANNELS, seed=3), numbers(2, LENGTH, seed=4)
    measured = metrics.insertion if insert else metrics.deletion
    ranked = [ranking_of(row) for row in maps]

    def expected(model: Any, x: torch.Tensor, default: str) -> torch.Tensor:
        """``x`` has shape (N, T, C)."""
        by = baseline or default
        instead = replacement(x.mT, by).expand_as(x.mT).mT
        return torch.tensor(
            [
                area_by_hand(model, one, other, ranking, LENGTH, insert)
                for one, other, ranking in zip(x, instead, ranked, strict=True)
            ],
            dtype=torch.float64,
        )

    options: dict[str, Any] = {"steps": LENGTH, "baseline": baseline}
    embeddings = measured(net.read, x, maps, 1, channels=-1, **options)
    torch.testing.assert_close(embeddings, expected(net.read, x, "zero"))
    signals = measured(lambda x: net.read(x.mT), x.mT.contiguous(), maps, 1, **options)
    torch.testing.assert_close(signals, expected(net.read, x, "mean"))

    def one_number(series: torch.Tensor) -> torch.Tensor:
        return net.read(series[:, :, None].expand(-1, -1, CHANNELS))

    series = measured(one_number, x[:, :, 0], maps, 1, **options)
    torch.testing.assert_close(series, expected(lambda x: one_number(x[:, :, 0]), x[:, :, :1], "mean"))


@pytest.mark.parametrize("name", ["deletion", "insertion", "morf_lerf"])
@pytest.mark.parametrize("length", [LENGTH, 3, 12])
@pytest.mark.parametrize("baseline", ["zero", "mean", "blur"])
def test_a_signal_is_a_picture_of_one_row(name: str, length: int, baseline: Any) -> None:
    net, x, maps = reader(), numbers(2, CHANNELS, LENGTH, seed=3), numbers(2, length, seed=4)
    measured = metrics.MEASURES[name]
    signals = measured(lambda x: net.read(x.mT), x, maps, 1, baseline=baseline)
    # The blur of a picture depends on its height, and that of a signal on its length: both blurs are one place here.
    pictures = measured(lambda x: net.read(x[:, :, 0].mT), x[:, :, None], maps[:, None], 1, baseline=baseline)
    torch.testing.assert_close(signals, pictures)


def test_single_tokens_are_removed() -> None:
    """In a linear model the drop of a token is the contribution of the token."""

    class Linear(Reader):
        def read(self, embeddings: torch.Tensor) -> torch.Tensor:
            return self.head(embeddings.flatten(1))

    with seeded():
        net = Linear().double().eval()
    net.embedding.weight.data[MASK] = 0
    maps = LayerCAV(net, "embedding", normalize=None).attribute(IDS, 1).sum(-1)
    for sign in (1, -1):
        found = metrics.single_deletion(net, IDS, sign * maps, 1, cells=LENGTH, baseline=MASK)
        torch.testing.assert_close(found, torch.full((2,), float(sign), dtype=torch.float64))
    with pytest.raises(InputError, match="inputs of 6 places cannot be divided into 7 cells"):
        metrics.single_deletion(net, IDS, maps, 1, cells=7, baseline=MASK)


def test_a_faithful_map_is_better_than_a_random_map() -> None:
    net = reader()
    ids = torch.randint(1, 10, (40, LENGTH), generator=torch.Generator().manual_seed(0))
    scores = net(ids).detach()
    targets = scores.argmax(1).tolist()
    faithful = torch.stack(
        [
            (scores - net(ids.index_fill(1, torch.tensor([place]), MASK)).detach())[range(40), targets]
            for place in range(LENGTH)
        ],
        1,
    )
    options: dict[str, Any] = {"steps": LENGTH, "baseline": MASK}
    gap = metrics.morf_lerf(net, ids, faithful, targets, **options)
    by_chance = metrics.morf_lerf(net, ids, numbers(40, LENGTH), targets, **options)
    assert gap.mean() > by_chance.mean() + 0.05
    torch.testing.assert_close(metrics.morf_lerf(net, ids, -faithful, targets, **options), -gap, atol=0.05, rtol=0.2)


@pytest.mark.parametrize("name", ["sparseness", "entropy", "agreement", "completeness"])
def test_a_sequence_is_a_map_of_one_row(name: str) -> None:
    maps, others, scores = numbers(3, 7), numbers(3, 7, seed=1), numbers(3, seed=2)
    measured = metrics.MEASURES[name]
    given = {"maps": maps, "others": others, "scores": scores}

    def value(reshaped: Any) -> torch.Tensor:
        chosen = {key: reshaped(one) if one.dim() == 2 else one for key, one in given.items()}
        return measured(**{key: chosen[key] for key in measured.needs})

    torch.testing.assert_close(value(lambda one: one), value(lambda one: one[:, None]))
    torch.testing.assert_close(value(lambda one: one), value(lambda one: one[:, None, None]))


def test_sequences_of_different_lengths_agree_on_the_longer_one() -> None:
    short, long = numbers(2, 4), numbers(2, 8, seed=1)
    found = metrics.agreement(short, long)
    torch.testing.assert_close(found, metrics.agreement(at_size(short, (8,)), long))
    torch.testing.assert_close(found, metrics.agreement(short[:, None], long[:, None]))
    uniform = at_size(torch.full((1, 3), 0.1), (7,))
    assert (uniform == uniform[0, 0]).all()
    with pytest.raises(InputError, match=r"others has shape \(2, 2, 4\); expected \(N, t\)"):
        metrics.agreement(short, long.reshape(2, 2, 4))


@pytest.mark.parametrize("name", ["mass_accuracy", "rank_accuracy", "pointing_hit"])
def test_masks_of_sequences(name: str) -> None:
    maps, masks = numbers(3, 4), numbers(3, 8, seed=2) > 0
    measured = metrics.MEASURES[name]
    torch.testing.assert_close(measured(maps, masks), measured(maps[:, None], masks[:, None]))
    with pytest.raises(
        InputError, match=r"masks is a tensor of torch.bool and shape \(3, 8\); expected .* \(N, H, W\)"
    ):
        measured(maps[:, None], masks)


def test_randomised_models_are_compared_on_sequences() -> None:
    net = reader()

    def explain(model: Any, ids: torch.Tensor, target: Any) -> torch.Tensor:
        contributions: torch.Tensor = LayerCAV(model, "embedding", normalize=None).attribute(ids, target)
        return contributions.sum(-1)

    maps = explain(net, IDS, [1, 1])
    assert metrics.model_randomisation(net, IDS, maps, 1, explain).max() < 1
    assert metrics.random_logit(net, IDS, maps, 1, explain).shape == (2,)
    fixed = metrics.model_randomisation(net, IDS, IDS.double(), 1, lambda model, ids, target: ids.double())
    torch.testing.assert_close(fixed, torch.ones(2).double())

    def of_signals(model: Any, x: torch.Tensor, target: Any) -> torch.Tensor:
        contributions: torch.Tensor = InputCAV(model, normalize=None).attribute(x, target)
        return contributions.sum(1)

    with seeded():
        conv = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).double()
    x = numbers(2, 2, 6)
    assert metrics.model_randomisation(conv, x, of_signals(conv, x, [1, 1]), 1, of_signals).max() < 1


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"baseline": None}, OptionError, "baseline is None for token ids; expected the id that replaces removed"),
        ({"baseline": "blur"}, OptionError, "baseline is 'blur' for token ids; .* tokenizer.mask_token_id or"),
        ({"baseline": 0.5}, OptionError, "baseline is 0.5; expected a whole number for token ids"),
        ({"maps": torch.ones(2, 5)}, InputError, r"maps has shape \(2, 5\) for token ids of shape \(2, 6\)"),
        ({"maps": torch.ones(2, 6, 4)}, InputError, r"maps has shape \(2, 6, 4\); expected \(N, t\).* Sum attribut"),
        (
            {"keep": torch.ones(2, 6)},
            InputError,
            r"keep is torch.float32 of shape \(2, 6\); expected booleans of shape",
        ),
        ({"keep": torch.ones(2, 5) > 0}, InputError, r"keep is torch.bool of shape \(2, 5\); expected"),
        ({"keep": [True]}, InputError, "keep is list; expected booleans"),
        ({"keep": torch.ones(2, 6) > 0}, InputError, "keep holds all places of a sample; expected at least one"),
        ({"channels": 2}, OptionError, r"channels is 2; expected 1 for inputs \(N, C, T\), or -1 for inputs"),
        ({"inputs": IDS > 3}, InputError, "inputs is a torch.bool tensor .* or token ids, integers of shape"),
        ({"inputs": IDS[0]}, InputError, r"inputs is a torch.int64 tensor of shape \(6,\); expected"),
        (
            {"inputs": numbers(2, LENGTH, CHANNELS), "baseline": None},
            InputError,
            r"for inputs of shape \(2, 6, 4\), whose channels are dimension 1; expected channels=-1 if that",
        ),
        (
            {"inputs": numbers(2, CHANNELS, LENGTH), "baseline": None, "channels": -1},
            InputError,
            r"whose channels are dimension -1; expected channels=1 if that dimension has the places",
        ),
        (
            {"inputs": numbers(2, 2, 6, 4), "maps": torch.ones(2, 6, 4), "channels": -1, "baseline": None},
            OptionError,
            r"channels is -1 for inputs of shape \(2, 2, 6, 4\); expected inputs \(N, T, C\)",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("name", ["deletion", "insertion", "morf_lerf"])
def test_what_does_not_fit_is_refused(name: str, changed: dict[str, Any], error: type[Exception], said: str) -> None:
    given = {"model": reader(), "inputs": IDS, "maps": numbers(2, LENGTH), "target": 1, "baseline": MASK} | changed
    with pytest.raises(error, match=said):
        metrics.MEASURES[name](**given)


def test_the_advice_about_the_channels_works() -> None:
    """Where places and channels are equally many, the option alone decides."""
    with seeded():
        square = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    x, maps = numbers(2, 6, 6), numbers(2, 6, seed=1)
    last = metrics.deletion(square, x, maps, 1, channels=-1, baseline="zero")
    first = metrics.deletion(lambda x: square(x.mT), x.mT, maps, 1, baseline="zero")
    torch.testing.assert_close(last, first)
    assert not torch.allclose(last, metrics.deletion(square, x, maps, 1, baseline="zero"))
