"""Models in training mode: refused where a module would act differently, allowed where none would."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, NeuronCAV
from captum_cav.errors import (
    ModelError,
)
from tests.support.errors import raising, refused
from tests.support.small_networks import Apply, net_around, samples
from tests.support.traces import left_as_it_was

# Models in training mode ---------------------------------------------------------------------------------------------


def attention(x: torch.Tensor, dropout: float) -> torch.Tensor:
    x = x.unsqueeze(1)
    return F.scaled_dot_product_attention(x, x, x, dropout_p=dropout).squeeze(1)


def recurrent(kind: type[nn.RNNBase], dropout: float) -> nn.Module:
    layer = kind(4, 4, num_layers=2, dropout=dropout, batch_first=True)
    return Apply(lambda x: layer(x.unsqueeze(1))[0].squeeze(1), layer)


def multihead(dropout: float, need_weights: bool) -> nn.Module:
    layer = nn.MultiheadAttention(4, 2, dropout=dropout, batch_first=True)

    def attend(x: torch.Tensor) -> torch.Tensor:
        x = x.unsqueeze(1)
        return layer(x, x, x, need_weights=need_weights)[0].squeeze(1)

    return Apply(attend, layer)


def with_statistics(function: Callable[..., torch.Tensor]) -> nn.Module:
    """A functional normalisation that would update the statistics of a module that is itself in evaluation mode."""
    norm = nn.BatchNorm1d(4).eval()
    return Apply(lambda x: function(x, norm), norm)


def as_maps(layer: nn.Module) -> nn.Module:
    return Apply(lambda x: layer(x.reshape(len(x), 4, 1, 1).repeat(1, 1, 2, 2)).mean((2, 3)), layer)


def batch_norm(x: torch.Tensor, norm: nn.BatchNorm1d) -> torch.Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True)


def low_level_batch_norm(x: torch.Tensor, norm: nn.BatchNorm1d) -> torch.Tensor:
    return torch.batch_norm(x, None, None, norm.running_mean, norm.running_var, True, 0.1, 1e-5, False)


def instance_norm(x: torch.Tensor, norm: nn.BatchNorm1d) -> torch.Tensor:
    return F.instance_norm(x.reshape(-1, 4, 1).repeat(1, 1, 2), norm.running_mean, norm.running_var).mean(2)


ACTING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "Dropout": (lambda: nn.Dropout(0.5), "module 'middle.0' (Dropout) is in training mode"),
    "Dropout2d": (lambda: as_maps(nn.Dropout2d(0.5)), "module 'middle.0.used.0' (Dropout2d) is in training mode"),
    "AlphaDropout": (lambda: nn.AlphaDropout(0.5), "module 'middle.0' (AlphaDropout) is in training mode"),
    "RReLU": (nn.RReLU, "module 'middle.0' (RReLU) is in training mode"),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), "module 'middle.0' (BatchNorm1d) is in training mode"),
    "BatchNorm2d": (lambda: as_maps(nn.BatchNorm2d(4)), "module 'middle.0.used.0' (BatchNorm2d) is in training mode"),
    "InstanceNorm2d": (lambda: as_maps(nn.InstanceNorm2d(4, track_running_stats=True)), "instance_norm"),
    "F.dropout": (lambda: Apply(lambda x: F.dropout(x, 0.5, training=True)), "dropout would act at random"),
    "torch.dropout": (lambda: Apply(lambda x: torch.dropout(x, 0.5, True)), "dropout would act at random"),
    "F.rrelu": (lambda: Apply(lambda x: F.rrelu(x, training=True)), "rrelu would act at random"),
    "F.batch_norm": (lambda: with_statistics(batch_norm), "batch_norm would change its running statistics"),
    "torch.batch_norm": (lambda: with_statistics(low_level_batch_norm), "batch_norm would change"),
    "F.instance_norm": (lambda: with_statistics(instance_norm), "instance_norm would change its running statistics"),
    "LSTM": (lambda: recurrent(nn.LSTM, 0.5), "lstm would drop at random between its layers"),
    "GRU": (lambda: recurrent(nn.GRU, 0.5), "gru would drop at random between its layers"),
    "RNN": (lambda: recurrent(nn.RNN, 0.5), "rnn_tanh would drop at random between its layers"),
    "MultiheadAttention": (lambda: multihead(0.5, need_weights=False), "at random"),
    "MultiheadAttention-weights": (lambda: multihead(0.5, need_weights=True), "at random"),
    "scaled_dot_product_attention": (
        lambda: Apply(lambda x: attention(x, 0.5)),
        "scaled_dot_product_attention would drop at random",
    ),
}


@pytest.mark.parametrize("where", ["behind the layer", "before the layer", "behind the inputs"])
@pytest.mark.parametrize(("make", "said"), list(ACTING.values()), ids=list(ACTING))
def test_what_would_act_in_training_is_refused_and_changes_nothing(
    make: Callable[[], nn.Module], said: str, where: str
) -> None:
    net = net_around(make()).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d) and said.startswith(("batch_norm", "instance_norm")):
            module.eval()
    x = samples().double()
    with refused(RuntimeError, said, "call model.eval() first", model=net):
        if where == "behind the inputs":
            InputCAV(net).attribute(x, 0)
        else:
            LayerCAV(net, "first" if where == "behind the layer" else "last").attribute(x, 0)


def normed() -> nn.Module:
    """A frozen batch norm in a net in training mode: each module's own flag counts."""
    norm = nn.BatchNorm1d(4)
    norm.train = lambda mode=True: norm  # type: ignore[method-assign]
    norm.training = False
    return norm


IDLE: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "LayerNorm": lambda: nn.LayerNorm(4),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "Dropout-0": lambda: nn.Dropout(0.0),
    "Dropout2d-0": lambda: as_maps(nn.Dropout2d(0.0)),
    "F.dropout-0": lambda: Apply(lambda x: F.dropout(x, 0.0, training=True)),
    "F.dropout-not-training": lambda: Apply(lambda x: F.dropout(x, 0.5, training=False)),
    "LSTM-0": lambda: recurrent(nn.LSTM, 0.0),
    "MultiheadAttention-0": lambda: multihead(0.0, need_weights=False),
    "attention-0": lambda: Apply(lambda x: attention(x, 0.0)),
    "BatchNorm1d-without-statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "frozen-BatchNorm1d": normed,
}


@pytest.mark.parametrize("make", list(IDLE.values()), ids=list(IDLE))
def test_a_model_in_training_mode_without_anything_that_acts_gives_the_map_of_evaluation_mode(
    make: Callable[[], nn.Module],
) -> None:
    net, x = net_around(make()), samples().double()
    attributions = [LayerCAV(net, ["first", "last"]), LayerCAV(net, ["middle"]), InputCAV(net)]
    expected = [one for attribution in attributions for one in attribution.attribute(x, 0)]
    net.train()
    assert net.training
    with left_as_it_was(net, x):
        found = [one for attribution in attributions for one in attribution.attribute(x, 0)]
    assert net.training
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_what_would_act_behind_a_neuron_is_refused_too() -> None:
    """The model runs to its end, so batch norm would write its statistics."""
    net = net_around(nn.BatchNorm1d(4)).train()
    with refused(RuntimeError, "(BatchNorm1d) is in training mode", model=net):
        NeuronCAV(net, "first").attribute(samples().double(), 0)


# Modes of the model and of torch -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("acting", "said"),
    [
        (nn.BatchNorm1d(4), r"module 'middle\.0' \(BatchNorm1d\) is in training mode.*; call model\.eval\(\) first"),
        (nn.Dropout(0.5), r"module 'middle\.0' \(Dropout\) is in training mode.*; call model\.eval\(\) first"),
    ],
    ids=["BatchNorm", "Dropout"],
)
def test_a_model_in_training_mode(acting: nn.Module, said: str) -> None:
    net, x = net_around(copy.deepcopy(acting), nn.Dropout(0.0).eval()), samples().double()
    net.train()
    net.middle[1].eval()
    for attribution in (LayerCAV(net, "first"), LayerCAV(net, "last"), InputCAV(net)):
        with raising(ModelError, RuntimeError, said, net):
            attribution.attribute(x, 0)
    assert [module.training for module in net.modules()] == [True, True, True, True, False, True]
