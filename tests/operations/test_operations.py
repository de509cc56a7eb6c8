"""Each operation's map against the same function with its rule written out by hand; the cases are the benchmark's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.coverage.operations import CASES, ELEMENTWISE, B, C, Function, W, X, compare, fixed, ratio, written
from captum_cav import InputCAV, LayerCAV
from captum_cav.errors import CAVTypeError, OptionError, UnsupportedOperationError
from captum_cav.rules import pass_through
from tests.support.torch_limits import limit_of


def check(function: Function, by_hand: Function, x: torch.Tensor = X) -> None:
    distance, delta, value, mass = compare(function, by_hand, x)
    assert distance < 1e-9
    assert delta < 1e-8
    assert value < 1e-9
    assert mass > 1e-6, "a map of nothing conserves trivially"


@pytest.mark.parametrize("name", CASES)
def test_an_operation_follows_its_rule(name: str) -> None:
    if reason := limit_of(name):
        pytest.skip(reason)
    check(*CASES[name])


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_activation_inside_a_network_follows_its_rule(name: str) -> None:
    function = ELEMENTWISE[name]
    check(lambda x: function(x) @ W + B, lambda x: ratio(function)(x) @ W + B)


def test_random_pooling_gives_all_to_the_winners_that_it_drew() -> None:
    def pooled(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        return F.fractional_max_pool2d(x, 2, output_size=(2, 3), return_indices=True)

    values, winners = pooled(X)
    expected = torch.zeros_like(X).flatten(1).scatter_add(1, winners.flatten(1), values.flatten(1)).reshape(X.shape)
    found = InputCAV(lambda x: pooled(x)[0].sum((1, 2)), normalize=None).attribute(X)
    torch.testing.assert_close(found, expected)


def test_products_in_groups_are_linear_in_their_rows() -> None:
    """Experts: torch multiplies each group of rows with a matrix of its own, in float32."""
    grouped_mm = getattr(F, "grouped_mm", None) or pytest.skip("this torch has no grouped_mm")
    experts, ends = fixed(2, 8, 4).float(), torch.tensor([1, 4], dtype=torch.int32)
    rows = fixed(4, 8, seed=3).float()
    found = InputCAV(lambda x: grouped_mm(x, experts, offs=ends)[:, 1], normalize=None).attribute(rows)
    torch.testing.assert_close(found, rows * experts[[0, 1, 1, 1], :, 1])


def test_batch_norm_is_right_in_any_memory_layout() -> None:
    """One sample's coefficients arrive transposed, as from tokens of a feature map: torch's own gradient is wrong."""
    mean, log_variance, weight, bias = fixed(4, 4, seed=22).reshape(4, 4, 1, 1)

    def tokens(maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(2).transpose(1, 2)

    def by_torch(x: torch.Tensor) -> torch.Tensor:
        statistics = (mean.flatten(), log_variance.exp().flatten(), weight.flatten(), bias.flatten())
        return tokens(F.batch_norm(x.reshape(1, 4, 3, 4), *statistics))

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        deviation = (log_variance.exp() + 1e-5).sqrt()
        return tokens((x.reshape(1, 4, 3, 4) - mean) / deviation * weight + bias)

    check(by_torch, by_hand)


IN_PLACE = [
    "relu",
    "relu6",
    "silu",
    "elu",
    "celu",
    "selu",
    "mish",
    "hardswish",
    "hardsigmoid",
    "leaky_relu",
    "hardtanh",
]


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_activations_equal_their_out_of_place_form(name: str) -> None:
    function = getattr(F, name)
    for change in (lambda y: function(y, inplace=True), lambda y: function(y, *_bounds(name), True)):
        check(lambda x, change=change: written(x, change), lambda x: ratio(function)(x * 1.5))
    check(lambda x: function(x * 1.5, inplace=True), lambda x: ratio(function)(x * 1.5))


def _bounds(name: str) -> tuple[float, ...]:
    """Arguments between the input and ``inplace``, at their defaults."""
    return {"elu": (1.0,), "celu": (1.0,), "leaky_relu": (0.01,), "hardtanh": (-1.0, 1.0)}.get(name, ())


@pytest.mark.parametrize("name", ["tanh", "gelu", "silu", "mish", "elu", "selu", "hardswish", "softsign", "erf", "sin"])
def test_the_slope_at_zero_is_the_limit(name: str) -> None:
    function = ELEMENTWISE[name]
    near = torch.tensor(-1e-9, dtype=torch.float64)
    slope = float(function(near) / near)

    def cancelling(u: torch.Tensor) -> torch.Tensor:
        # The two cancel before the activation, so each contributes its coefficient, up to its sign.
        return function(u[:, 0] - u[:, 1]) + torch.ones(1, dtype=u.dtype)

    contributions = InputCAV(cancelling, normalize=None).attribute(torch.ones(1, 2, dtype=torch.float64))
    expected = torch.tensor([[slope, -slope]], dtype=torch.float64)
    torch.testing.assert_close(contributions, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "exp", "cos", "hardsigmoid"])
def test_without_a_limit_at_zero_the_value_there_is_a_constants(name: str) -> None:
    function = ELEMENTWISE[name]
    x = torch.tensor([[0.0, 0.5]], dtype=torch.float64)
    contributions, delta = InputCAV(lambda x: function(x).sum(1), normalize=None).attribute(
        x, return_convergence_delta=True
    )
    expected = torch.stack([torch.zeros(1, dtype=torch.float64), function(x[:, 1])], 1)
    torch.testing.assert_close(contributions, expected)
    assert delta.abs().item() < 1e-12


def test_arguments_by_name_are_found() -> None:
    check(lambda x: torch.tanh(input=x), ratio(torch.tanh))
    check(lambda x: torch.softmax(input=x, dim=-1), ratio(lambda x: x.softmax(-1)))
    check(lambda x: F.silu(input=x) @ W, lambda x: ratio(F.silu)(x) @ W)
    check(lambda x: torch.mul(input=x, other=x.sigmoid()), lambda x: x * x.sigmoid().detach())


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.clamp(x, min=0.1 * x.flip(-1)),
        lambda x: F.prelu(x, x[0, 0, :4]),
    ],
    ids=["clamp", "prelu"],
)
def test_an_activation_whose_parameters_depend_on_the_inputs_is_refused(function: Function) -> None:
    with pytest.raises(UnsupportedOperationError, match="has no rule"):
        InputCAV(lambda x: function(x).sum((1, 2))).attribute(X)


@pytest.mark.parametrize("bounds", [(0.2, 1.0), (-1.0, -0.2)], ids=str)
def test_a_hardtanh_that_is_not_zero_at_zero_stays_finite(bounds: tuple[float, float]) -> None:
    x = torch.tensor([[0.0, 0.5]], dtype=torch.float64)
    found, delta = InputCAV(lambda x: F.hardtanh(x, *bounds).sum(1), normalize=None).attribute(
        x - 0 * x, return_convergence_delta=True
    )
    torch.testing.assert_close(found[0, 1], F.hardtanh(x, *bounds)[0, 1])
    assert found[0, 0] == 0
    assert delta.abs().item() < 1e-12


def test_integer_inputs_stay_indices_in_the_account() -> None:
    embedding = nn.Embedding(4, 6).double()

    def model(ids: torch.Tensor) -> torch.Tensor:
        return embedding(ids).sum(-1).scatter_add(1, ids, C[..., 0]) @ torch.arange(4.0).double()

    ids = torch.tensor([[3, 1, 0, 2], [1, 1, 2, 3]])
    _, delta = LayerCAV(model, embedding, normalize=None).attribute(ids, return_convergence_delta=True)
    assert delta.abs().max() < 1e-9


def test_pass_through_of_what_is_not_elementwise_is_refused() -> None:
    with pytest.raises(OptionError, match="pass_through is for elementwise operations; 'sum' made"):
        InputCAV(lambda x: x.sum((1, 2)), rules={torch.sum: pass_through}).attribute(X)


SEQUENCES = {
    "LSTM": lambda **options: nn.LSTM(6, 5, **options),
    "LSTM, projected": lambda **options: nn.LSTM(6, 5, proj_size=3, **options),
    "GRU": lambda **options: nn.GRU(6, 5, **options),
    "RNN, tanh": lambda **options: nn.RNN(6, 5, **options),
    "RNN, relu": lambda **options: nn.RNN(6, 5, nonlinearity="relu", **options),
}


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "time first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_packed_sequences_are_the_same_as_one_by_one(name: str, bidirectional: bool, batch_first: bool) -> None:
    torch.manual_seed(0)
    options = {"num_layers": 2, "bidirectional": bidirectional, "batch_first": batch_first}
    layer, lengths = SEQUENCES[name](**options).double().eval(), torch.tensor([2, 4, 3])
    x = fixed(3, 4, 6, seed=5)

    def states(output: torch.Tensor, hidden: Any) -> torch.Tensor:
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        summed = output.sum(1 if batch_first else 0)
        return torch.cat([summed, hidden.transpose(0, 1).flatten(1)], 1)

    def in_order(x: torch.Tensor) -> torch.Tensor:
        return x if batch_first else x.transpose(0, 1)

    def packed(x: torch.Tensor) -> torch.Tensor:
        sequences = pack_padded_sequence(in_order(x), lengths, batch_first=batch_first, enforce_sorted=False)
        output, hidden = layer(sequences)
        return states(pad_packed_sequence(output, batch_first=batch_first)[0], hidden)

    def one_by_one(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([states(*layer(in_order(x[i : i + 1, :n]))) for i, n in enumerate(lengths)])

    torch.testing.assert_close(packed(x), one_by_one(x))
    weights = fixed(packed(x).shape[1], seed=6)
    found, delta = InputCAV(lambda x: packed(x) @ weights).attribute(x, return_convergence_delta=True)
    torch.testing.assert_close(found, InputCAV(lambda x: one_by_one(x) @ weights).attribute(x))
    assert delta.abs().max() < 1e-12


def test_complex_layers_are_refused_where_they_are_asked_for() -> None:
    class Spectrum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.rfft(x)

    net = nn.Sequential(nn.Linear(6, 6), Spectrum()).double()
    with pytest.raises(CAVTypeError, match=r"the layer gives complex numbers \(torch.complex128\)"):
        LayerCAV(lambda x: net(x).abs().sum(-1), net[1]).attribute(X[:, 0])
