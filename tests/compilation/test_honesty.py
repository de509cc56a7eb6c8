"""What a recording refuses, what it notices, and what it leaves behind."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

import captum_cav
from captum_cav import InputCAV, LayerCAV, NeuronCAV, rules
from captum_cav.errors import (
    CAVTypeError,
    InputError,
    ModelError,
    OptionError,
    RecordingError,
    RecordingWarning,
    TargetError,
)
from tests.compilation.test_equality import assert_equal_bits, convolutional, recordings_of
from tests.support.small_networks import picture, samples, small_net
from tests.support.traces import left_as_it_was


class Middle(nn.Module):
    """Linear layers "first" and "last", and a function between them, in the module "middle"."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.middle = Function(function)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(x)))


class Function(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def middle(function: Callable[[torch.Tensor], torch.Tensor]) -> LayerCAV:
    return LayerCAV(Middle(function).eval(), "first", normalize=None)


def clipped(x: torch.Tensor) -> torch.Tensor:
    return x / 2 if float(x.detach().abs().max()) > 1e3 else x


def in_numpy(x: torch.Tensor) -> torch.Tensor:
    return x * float(x.detach().numpy().argmax() + 1)


def in_a_list(x: torch.Tensor) -> torch.Tensor:
    return x * (1.0 if x.detach().tolist()[0][0] > 1e3 else 2.0)


def at_random(x: torch.Tensor) -> torch.Tensor:
    return x + 0.1 * torch.randn(4)


def selected(x: torch.Tensor) -> torch.Tensor:
    rows = (x.detach().sum(1) < 1e3).nonzero().flatten()
    return x[rows]


def masked(x: torch.Tensor) -> torch.Tensor:
    return x[x.detach().sum(1) < 1e3]


BREAKS = {
    clipped: "reads a number of a tensor",
    in_numpy: r"reads the numbers of a tensor by numpy\(\)",
    in_a_list: r"reads the numbers of a tensor by tolist\(\)",
    at_random: "takes random numbers by randn",
    selected: "makes a tensor whose shape depends on numbers, by nonzero",
    masked: "makes a tensor whose shape depends on numbers, by index",
}


@pytest.mark.parametrize("function", BREAKS, ids=[function.__name__ for function in BREAKS])
def test_what_hangs_on_numbers_is_refused_by_the_name_of_the_module(function: Any) -> None:
    cav, x = middle(function), samples()
    compiled = captum_cav.compile(cav)
    message = f"in module 'middle' \\(Function\\) {BREAKS[function]}"
    with left_as_it_was(cav.forward_func, x), pytest.raises(RecordingError, match=message):
        compiled.attribute(x, 1)
    # What the message advises.
    eager = captum_cav.compile(cav, on_break="eager")
    with pytest.warns(RecordingWarning, match="runs as usual: something in module 'middle'"):
        found = eager.attribute(x, 1)
    assert found.shape == (2, 4)
    if function is not at_random:
        assert_equal_bits(eager.attribute(2 * x, 1), cav.attribute(2 * x, 1))  # without another warning


def test_a_count_in_a_buffer_is_refused() -> None:
    net = Middle(lambda x: x)
    net.middle.function = lambda x: x * net.middle.count.add_(1.0)
    with pytest.raises(RecordingError, match=r"'middle' .* writes into a parameter, a buffer or an argument by add_"):
        captum_cav.compile(LayerCAV(net.eval(), "first")).attribute(samples(), 1)


def test_another_behaviour_the_second_time_is_refused() -> None:
    calls: list[int] = []

    def grows(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x * float(len(calls))

    with pytest.raises(RecordingError, match=r"a result of shape .* is off by .* behaves otherwise the second time"):
        captum_cav.compile(middle(grows)).attribute(samples(), 1)


def test_hooks_are_refused_by_the_name_of_the_module() -> None:
    net, x = small_net(), samples()
    compiled = captum_cav.compile(LayerCAV(net, "0"))
    expected = compiled.attribute(x, 1)
    handle = net[1].register_forward_hook(lambda module, args, output: None)
    with pytest.raises(RecordingError, match=r"a forward hook is in module '1' \(ReLU\), which a replay would not"):
        compiled.attribute(x, 1)
    handle.remove()
    assert_equal_bits(compiled.attribute(x, 1), expected)


def test_hooks_of_torch_are_recorded() -> None:
    net, x = small_net(), samples()
    nn.utils.parametrizations.weight_norm(net[0])
    nn.utils.spectral_norm(net[2]).eval()
    cav = LayerCAV(net, "1")
    assert_equal_bits(captum_cav.compile(cav).attribute(x, 1), cav.attribute(x, 1))


def test_an_argument_that_is_no_plain_value_is_refused() -> None:
    cav = LayerCAV(*(lambda net: (lambda x, cache: net(x), net[0]))(small_net()))
    with pytest.raises(RecordingError, match="an argument of the model holds a Function, which may change"):
        captum_cav.compile(cav).attribute(samples(), 1, Function(torch.relu))


def test_what_is_no_attribution_is_refused() -> None:
    with pytest.raises(CAVTypeError, match="given a LayerGradCam; expected a LayerCAV"):
        captum_cav.compile(LayerGradCam(small_net(), small_net()[0]))  # type: ignore[type-var]
    with pytest.raises(CAVTypeError, match="compile\\(\\) was given a Sequential; expected a LayerCAV"):
        captum_cav.compile(small_net())  # type: ignore[type-var]
    with pytest.raises(OptionError, match="backend"):
        captum_cav.compile(LayerCAV(small_net(), "0"), backend="onnx")  # type: ignore[arg-type]


# Errors and warnings of the attribution -------------------------------------------------------------------------------


def test_errors_are_those_of_the_attribution() -> None:
    net, x = small_net(), samples()
    compiled = captum_cav.compile(LayerCAV(net, "0"))
    for _ in range(2):  # before there is a recording, and with one
        with pytest.raises(TargetError, match="target is 3, out of range"):
            compiled.attribute(x, 3)
        with pytest.raises(TargetError, match="target lists 3 entries"):
            compiled.attribute(x, [0, 1, 2])
        with pytest.raises(TargetError, match="target is missing"):
            compiled.attribute(x)
        with pytest.raises(InputError, match="NaN"):
            compiled.attribute(x * torch.nan, 0)
        compiled.attribute(x, 0)
    assert recordings_of(compiled) == 1
    with torch.no_grad():
        net[2].weight.fill_(torch.inf)
    with pytest.raises(ModelError, match="not finite in samples 0, 1"):
        compiled.attribute(x, 0)


def test_warnings_are_those_of_the_attribution() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    for layer in net:
        layer.weight.data.fill_(1.0)
    compiled = captum_cav.compile(LayerCAV(net, "0"))
    compiled.attribute(torch.ones(1, 2), 0)
    with pytest.warns(captum_cav.errors.SignWarning, match="the score is negative"):
        compiled.attribute(-torch.ones(1, 2), 0)
    with pytest.warns(captum_cav.errors.ScoreWarning, match="sample 0 is at or near zero"):
        compiled.attribute(torch.tensor([[1.0, -1.0]]), 0)


# Weights and state ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [False, True])
def test_changed_weights_are_noticed(freeze: bool) -> None:
    net, x = convolutional(), picture()
    cav = LayerCAV(net, ["0", "3"])
    compiled = captum_cav.compile(cav, freeze=freeze)
    compiled.attribute(x, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net(x).square().sum().backward()
    optimizer.step()
    assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))
    net[8].weight = nn.Parameter(torch.randn_like(net[8].weight))
    assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))
    net[1].running_mean.add_(1.0)
    assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))
    net.load_state_dict(convolutional().state_dict())
    assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))
    net[8].bias = None
    assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))
    net[4].stride = (2, 2)
    assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))
    net[5] = nn.Tanh()
    assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))
    net.double()
    assert_equal_bits(compiled.attribute(x.double(), 1), cav.attribute(x.double(), 1))


def test_weights_are_not_copied() -> None:
    net, x = convolutional(), picture()
    compiled = captum_cav.compile(LayerCAV(net, "0"))
    compiled.attribute(x, 1)
    (made,) = compiled._made.values()  # type: ignore[attr-defined]
    known = {tensor.data_ptr() for tensor in [*net.parameters(), *net.buffers()]}
    large = [tensor for tensor in made.recording.constants.now() if tensor.numel() > 1]
    assert large
    assert {tensor.data_ptr() for tensor in large} <= known


def test_training_mode_is_refused_as_usual() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3)).eval(), samples()
    compiled = captum_cav.compile(LayerCAV(net, "0"))
    compiled.attribute(x, 1)
    net.train()
    with pytest.raises(ModelError, match="training"):
        compiled.attribute(x, 1)
    net.eval()
    compiled.attribute(x, 1)


def test_another_layer_model_or_rule() -> None:
    net, x = small_net(), samples()
    cav, compiled = LayerCAV(net, "0"), captum_cav.compile(LayerCAV(net, "0"))
    compiled.attribute(x, 1)
    cav.layer = compiled.layer = "1"
    assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))
    net[2].rule = rules.EpsilonRule(0.5)
    assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))
    del net[2].rule
    cav.forward_func = compiled.forward_func = nn.Sequential(net, nn.Linear(3, 2))
    assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))


def test_the_model_behind_a_function_is_watched_too() -> None:
    net, x = convolutional(), picture()
    cav = LayerCAV(lambda x: net(x)[:, :3], net[0])
    compiled = captum_cav.compile(cav)
    compiled.attribute(x, 1)
    net[8].weight = nn.Parameter(torch.randn_like(net[8].weight))
    net[4].stride = (2, 2)
    assert_equal_bits(compiled.attribute(x, 1), cav.attribute(x, 1))


def test_a_counter_among_the_attributes_is_no_reason_to_record_anew() -> None:
    net = Middle(torch.relu)

    def counted(x: torch.Tensor) -> torch.Tensor:
        net.middle.calls = getattr(net.middle, "calls", 0) + 1
        return torch.relu(x)

    net.middle.function = counted
    compiled = captum_cav.compile(LayerCAV(net.eval(), "first", normalize=None))
    compiled.attribute(samples(), 1)
    before = net.middle.calls
    compiled.attribute(samples(), 2)
    assert net.middle.calls == before


# What is left behind --------------------------------------------------------------------------------------------------


def test_nothing_is_left_on_the_model() -> None:
    net, x = convolutional(), picture()
    compiled = captum_cav.compile(LayerCAV(net, "0"))
    with left_as_it_was(net, x):
        compiled.attribute(x, 1)
        compiled.attribute(x, 2)


def test_a_dropped_recording_is_freed() -> None:
    net, x = small_net(), samples()
    compiled = captum_cav.compile(LayerCAV(net, "0"))
    compiled.attribute(x, 1)
    given = weakref.ref(x)
    (made,) = compiled._made.values()  # type: ignore[attr-defined]
    recording = weakref.ref(made.recording)
    del x, made
    gc.collect()
    assert given() is None, "a recording keeps no inputs"
    del compiled
    gc.collect()
    assert recording() is None


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda it: pickle.loads(pickle.dumps(it))])  # noqa: S301
def test_copies_record_anew(copied: Any) -> None:
    net, x = small_net(), samples()
    for cav in (LayerCAV(net, "0", rules="gamma"), InputCAV(net), NeuronCAV(net, "0")):
        compiled = captum_cav.compile(cav, on_break="eager")
        expected = compiled.attribute(x, 1)
        twin = copied(compiled)
        assert type(twin) is type(compiled)
        assert recordings_of(twin) == 0
        assert_equal_bits(twin.attribute(x, 1), expected)
        assert twin._choices == compiled._choices


def test_compiling_twice_is_compiling_once() -> None:
    compiled = captum_cav.compile(captum_cav.compile(LayerCAV(small_net(), "0")))
    assert_equal_bits(compiled.attribute(samples(), 1), LayerCAV(small_net(), "0").attribute(samples(), 1))


def test_threads_share_a_recording() -> None:
    net = convolutional()
    cav, compiled = LayerCAV(net, "0"), captum_cav.compile(LayerCAV(net, "0"))
    found: dict[int, torch.Tensor] = {}

    def work(seed: int) -> None:
        found[seed] = compiled.attribute(picture(seed), seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recordings_of(compiled) == 1
    for seed, one in found.items():
        assert_equal_bits(one, cav.attribute(picture(seed), seed))


def test_the_table_of_rules_is_that_of_the_attribution() -> None:
    net, x = small_net(), samples()
    assert str(captum_cav.compile(InputCAV(net)).explain_rules(x)) == str(InputCAV(net).explain_rules(x))
