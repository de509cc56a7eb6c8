"""Every bad input gets an error that says what was given, what was expected and what to do, and changes nothing."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, NeuronCAV, rules
from captum_cav.errors import CAVError, ScoreWarning, UnsupportedOperationWarning
from tests.attribution.test_no_trace import left_as_it_was

Attribution = Callable[..., Any]
Function = Callable[[torch.Tensor], Any]


@contextmanager
def refused(builtin: type[Exception], *texts: str, model: nn.Module | None = None) -> Iterator[None]:
    """Expect an error of both hierarchies that says all the texts, and a model left as it was."""
    with left_as_it_was(nn.Identity() if model is None else model):
        with pytest.raises(CAVError) as caught:
            yield
        assert isinstance(caught.value, builtin)
    for text in texts:
        assert text in str(caught.value)


@contextmanager
def seeded() -> Iterator[None]:
    """The same random numbers every time, and none taken from the process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def small_net(outputs: int = 3) -> nn.Sequential:
    """Layers "0" to "2": linear, ReLU, linear."""
    with seeded():
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, outputs)).eval()


def samples(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1))


class Apply(nn.Module):
    """A function as a module, with modules that it uses."""

    def __init__(self, function: Function, *used: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.used = nn.ModuleList(used)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def net_around(*middle: nn.Module) -> nn.Sequential:
    """Layer "first", the given modules as "middle", layer "last"; in float64."""
    net = nn.Sequential()
    with seeded():
        net.add_module("first", nn.Linear(4, 4))
        net.add_module("middle", nn.Sequential(*middle))
        net.add_module("last", nn.Linear(4, 3))
    return net.double()


WAYS: dict[str, Attribution] = {
    "layer": lambda net, x: LayerCAV(net, "0").attribute(x, 0),
    "inputs": lambda net, x: InputCAV(net).attribute(x, 0),
    "neuron": lambda net, x: NeuronCAV(net, "0").attribute(x, 0),
}
every_way = pytest.mark.parametrize("attribute", list(WAYS.values()), ids=list(WAYS))
MAKERS: dict[str, Attribution] = {"layer": LayerCAV, "neuron": NeuronCAV}
every_layer_maker = pytest.mark.parametrize("make", list(MAKERS.values()), ids=list(MAKERS))


# Targets ---------------------------------------------------------------------------------------------------------


def test_a_missing_target_is_refused_where_a_sample_has_several_scores() -> None:
    net = small_net()
    said = ("target is missing", "3 values a sample", "(2, 3)", "target=i with i from 0 to 2")
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with refused(ValueError, *said, model=net):
            attribution.attribute(samples())
    maps = nn.Conv2d(1, 3, 1)
    with refused(ValueError, "target is missing", "12 values", "one index for each of the sizes (3, 2, 2)", model=maps):
        InputCAV(maps).attribute(torch.ones(2, 1, 2, 2))


@pytest.mark.parametrize("count", [1, 2])
def test_no_target_is_needed_where_a_sample_has_one_score(count: int) -> None:
    net, x = small_net(outputs=1), samples(count)
    expected = LayerCAV(net, "0").attribute(x, 0)
    torch.testing.assert_close(LayerCAV(net, "0").attribute(x), expected)
    torch.testing.assert_close(LayerCAV(lambda x: net(x)[:, 0], net[0]).attribute(x), expected)


def test_a_target_is_refused_where_the_output_has_no_choices() -> None:
    with refused(ValueError, "target is 0", "0 dimensions", "output shape (2,)", "pass no target"):
        InputCAV(lambda x: x.sum(1)).attribute(samples(), 0)


OUT_OF_RANGE: dict[str, tuple[Any, str]] = {
    "int-high": (3, "target is 3"),
    "int-low": (-4, "target is -4"),
    "tuple-high": ((3,), "target is (3,)"),
    "tuple-low": ((-4,), "target is (-4,)"),
    "list-high": ([0, 3], "target[1] is 3"),
    "list-low": ([-4, 0], "target[0] is -4"),
    "list-of-tuples": ([(0,), (3,)], "target[1] is (3,)"),
    "tensor-high": (torch.tensor([3, 0]), "target[0] is 3"),
    "tensor-low": (torch.tensor([0, -4]), "target[1] is -4"),
    "tensor-of-one": (torch.tensor(3), "target is 3"),
}


@pytest.mark.parametrize(("target", "given"), list(OUT_OF_RANGE.values()), ids=list(OUT_OF_RANGE))
def test_a_target_out_of_range_is_refused(target: Any, given: str) -> None:
    net = small_net()
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with refused(ValueError, given, "out of range for output shape (2, 3)", "0 to 2", model=net):
            attribution.attribute(samples(), target)


@pytest.mark.parametrize("target", [(3, 0, 0), (0, -3, 0), (0, 0, 2)])
def test_an_index_out_of_range_of_any_dimension_is_refused(target: tuple[int, ...]) -> None:
    net = nn.Conv2d(1, 3, 1)
    with refused(ValueError, f"target is {target}", "out of range for output shape (2, 3, 2, 2)", model=net):
        InputCAV(net).attribute(torch.ones(2, 1, 2, 2), target)


def test_a_target_out_of_range_among_several_is_refused() -> None:
    net = small_net()
    with refused(ValueError, "target is 7", "0 to 2", model=net):
        LayerCAV(net, "0").attribute_targets(samples(), [0, 7])


EQUAL: dict[str, tuple[Any, Any]] = {
    "negative-int": (-1, 2),
    "negative-tuple": ((-3,), 0),
    "list": ([2, 0], None),
    "negative-list": ([-1, -3], None),
    "tensor": (torch.tensor([2, 0]), None),
    "negative-tensor": (torch.tensor([-1, -3]), None),
    "int32-tensor": (torch.tensor([2, 0], dtype=torch.int32), None),
    "uint8-tensor": (torch.tensor([2, 0], dtype=torch.uint8), None),
    "tensor-of-one": (torch.tensor(-1), 2),
    "list-of-tuples": ([(2,), (-3,)], None),
    "mixed-list": ([2, (0,)], None),
    "list-mixed-otherwise": ([(2,), 0], None),
}


@pytest.mark.parametrize(("target", "same"), list(EQUAL.values()), ids=list(EQUAL))
def test_a_target_within_range_is_taken_in_every_form(target: Any, same: int | None) -> None:
    net, x = small_net(), samples()
    indices = (2, 0) if same is None else (same, same)
    expected = torch.cat([LayerCAV(net, "0").attribute(x[k : k + 1], index) for k, index in enumerate(indices)])
    torch.testing.assert_close(LayerCAV(net, "0").attribute(x, target), expected)


WRONG_TYPES: dict[str, tuple[Any, str]] = {
    "float": (1.0, "target is 1.0 (float)"),
    "bool": (True, "target is True (bool)"),
    "str": ("dog", "target is 'dog' (str)"),
    "dict": ({}, "target is {} (dict)"),
    "None-in-list": ([None, 0], "target[0] is None (NoneType)"),
    "bool-in-list": ([0, False], "target[1] is False (bool)"),
    "float-in-tuple": ((0.5,), "target is (0.5,) (tuple)"),
    "list-in-list": ([[0], [1]], "target[0] is [0] (list)"),
    "float-tensor": (torch.tensor([0.0, 1.0]), "target is a tensor of torch.float32"),
    "float-tensor-of-one": (torch.tensor(1.0), "target is a tensor of torch.float32"),
    "bool-tensor": (torch.tensor([True, False]), "target is a tensor of torch.bool"),
    "array": (np.array([0, 1]), "ndarray"),
}


@pytest.mark.parametrize(("target", "given"), list(WRONG_TYPES.values()), ids=list(WRONG_TYPES))
def test_a_target_of_a_wrong_type_is_refused(target: Any, given: str) -> None:
    net = small_net()
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with refused(TypeError, given, "expected", "integer", "target=i with i from 0 to 2", model=net):
            attribution.attribute(samples(), target)


@pytest.mark.parametrize("target", [[], [0], [0, 1, 2], torch.tensor([0, 1, 2])], ids=["0", "1", "3", "tensor"])
def test_a_target_of_a_wrong_length_is_refused(target: Any) -> None:
    net = small_net()
    with refused(ValueError, f"{len(target)} entries for 2 samples", "expected one for each", model=net):
        LayerCAV(net, "0").attribute(samples(), target)


def test_a_target_tensor_of_two_dimensions_is_refused() -> None:
    net = small_net()
    with refused(ValueError, "target has shape (2, 1)", "one index for each of 2 samples", model=net):
        LayerCAV(net, "0").attribute(samples(), torch.tensor([[0], [1]]))


@pytest.mark.parametrize(
    ("target", "given"),
    [
        (1, "target is 1, which selects 1 of the 3"),
        ((1, 0), "target is (1, 0), which selects 2 of the 3"),
        ((1, 0, 0, 0), "target is (1, 0, 0, 0), which selects 4 of the 3"),
        ([(1, 0, 0), (1, 0)], "target[1] is (1, 0), which selects 2 of the 3"),
        (torch.tensor([1, 0]), "target[0] is 1, which selects 1 of the 3"),
    ],
    ids=["int", "pair", "four", "list", "tensor"],
)
def test_a_target_of_wrong_arity_is_refused(target: Any, given: str) -> None:
    net, x = nn.Conv2d(1, 3, 1), torch.ones(2, 1, 2, 2)
    said = ("dimensions behind the batch", "output shape (2, 3, 2, 2)", "one index for each of the sizes (3, 2, 2)")
    with refused(ValueError, given, *said, model=net):
        InputCAV(net).attribute(x, target)
    assert InputCAV(net).attribute(x, (1, 0, -1)).shape == x.shape


# Layers ----------------------------------------------------------------------------------------------------------


@every_layer_maker
def test_an_unknown_layer_name_is_refused_with_near_matches(make: Attribution) -> None:
    net = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "head": nn.Linear(4, 2)})
    with refused(ValueError, "unknown layer 'encodr.1'", "'encoder.1'", "model.named_modules()", model=net):
        make(net, "encodr.1")
    with refused(ValueError, "unknown layer 'haed' (did you mean 'head'?)", model=net):
        make(net, "haed")
    with pytest.raises(ValueError, match="unknown layer 'xyz'; see") as caught:
        make(net, "xyz")
    assert "did you mean" not in str(caught.value)


def test_an_unknown_name_within_a_list_is_refused() -> None:
    net = small_net()
    with refused(ValueError, "unknown layer '3'", "model.named_modules()", model=net):
        LayerCAV(net, ["0", "3"])


@every_layer_maker
def test_a_name_is_refused_where_the_model_is_a_plain_function(make: Attribution) -> None:
    net = small_net()
    with refused(ValueError, "layer '0' is a name", "not a module", "pass the layer module", model=net):
        make(lambda x: net(x), "0")
    make(lambda x: net(x), net[0])


@every_layer_maker
def test_a_layer_of_another_model_is_refused(make: Attribution) -> None:
    net = small_net()
    with refused(ValueError, "(Linear) does not belong to this model (Sequential)", "same model object", model=net):
        make(net, small_net()[0])


@every_layer_maker
@pytest.mark.parametrize("layer", [3, None, torch.ones(2), nn.Linear], ids=["int", "None", "tensor", "class"])
def test_a_layer_that_is_no_module_is_refused(make: Attribution, layer: Any) -> None:
    net = small_net()
    said = (f"layer is a {type(layer).__name__}", "expected a torch.nn.Module", "qualified name")
    with refused(TypeError, *said, model=net):
        make(net, layer)


def test_a_list_of_layers_is_refused_for_a_neuron_without_being_asked_for() -> None:
    with pytest.raises(TypeError, match="layer is a list") as caught:
        NeuronCAV(small_net(), ["0", "1"])
    assert isinstance(caught.value, CAVError)
    assert "or a list of either" not in str(caught.value)


@pytest.mark.parametrize("layers", [[], ()], ids=["list", "tuple"])
def test_an_empty_list_of_layers_is_refused(layers: Any) -> None:
    with refused(ValueError, "layer is an empty list", "expected at least one layer"):
        LayerCAV(small_net(), layers)


class WithUnused(nn.Module):
    """One layer is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_a_layer_that_the_forward_pass_never_reaches_is_refused(at_input: bool) -> None:
    net = WithUnused()
    said = ("layer 'unused' was not reached by the forward pass",)
    with refused(ValueError, *said, "pick one that this input runs through", model=net):
        LayerCAV(net, ["used", "unused"]).attribute(samples(), 0, attribute_to_layer_input=at_input)
    with refused(ValueError, *said, model=net):
        NeuronCAV(net, "unused").attribute(samples(), 0, attribute_to_neuron_input=at_input)


def test_a_layer_that_a_plain_function_never_reaches_is_refused() -> None:
    net, other = small_net(), nn.Linear(4, 3)
    with refused(ValueError, "layer Linear was not reached", model=net):
        LayerCAV(lambda x: net(x), other).attribute(samples(), 0)


def test_a_layer_that_gives_no_numbers_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Apply(lambda x: (x, x.argmax(1))), Apply(lambda pair: pair[0]))
    assert LayerCAV(net, "1").attribute(samples(), 0).shape == (2, 4)
    indices = nn.Sequential(Apply(lambda x: x.argmax(1)), nn.Embedding(4, 3))
    with refused(
        TypeError, "layer '0' gave a Tensor, in which no floating-point tensor was found", "pick a layer", model=indices
    ):
        LayerCAV(indices, "0").attribute(samples(), 0)


class Repeating(nn.Module):
    """The same middle layer three times, or three copies of it."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        with seeded():
            self.middle, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.copies = nn.ModuleList([self.middle] * 3 if shared else [nn.Linear(4, 4) for _ in range(3)])
        for copy in self.copies:
            copy.load_state_dict(self.middle.state_dict())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for copy in self.copies:
            x = torch.tanh(copy(x))
        return self.head(x)


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_a_layer_that_is_reached_several_times_needs_call(at_input: bool) -> None:
    net = Repeating(shared=True)
    with refused(ValueError, "layer 'middle' was reached 3 times", "call=0 ... 2", "-1 for the last", model=net):
        LayerCAV(net, "middle").attribute(samples(), 0, attribute_to_layer_input=at_input)


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("call", [0, 1, 2, -1, -3])
def test_call_gives_the_map_of_that_call(call: int, at_input: bool) -> None:
    shared, twin = Repeating(shared=True), Repeating(shared=False)
    ways = {"attribute_to_layer_input": at_input, "return_convergence_delta": True}
    found, delta = LayerCAV(shared, "middle", call=call).attribute(samples(), 1, **ways)
    expected, _ = LayerCAV(twin, twin.copies[call]).attribute(samples(), 1, **ways)
    torch.testing.assert_close(found, expected)
    assert delta.abs().max() < 1e-5
    others = [LayerCAV(twin, copy).attribute(samples(), 1, **ways)[0] for copy in twin.copies]
    assert sum(torch.allclose(found, other) for other in others) == 1


@pytest.mark.parametrize("call", [3, -4])
def test_a_call_out_of_range_is_refused(call: int) -> None:
    net = Repeating(shared=True)
    with refused(ValueError, "layer 'middle' was reached 3 times", f"call={call} is out of range", model=net):
        LayerCAV(net, "middle", call=call).attribute(samples(), 0)


# Inputs ----------------------------------------------------------------------------------------------------------


@every_way
def test_inference_mode_is_refused(attribute: Attribution) -> None:
    net, x = small_net(), samples()
    said = ("under torch.inference_mode()", "leave it", "torch.no_grad() instead")
    with torch.inference_mode(), refused(RuntimeError, *said, model=net):
        attribute(net, x)


@every_way
def test_parameters_made_under_inference_mode_are_refused(attribute: Attribution) -> None:
    with torch.inference_mode():
        net = small_net()
    said = ("parameters were created under torch.inference_mode()", "build or load it outside")
    with refused(RuntimeError, *said):
        attribute(net, samples())


@every_way
def test_inputs_made_under_inference_mode_are_refused_and_their_clone_is_not(attribute: Attribution) -> None:
    net = small_net()
    with torch.inference_mode():
        x = samples() + 0
    said = ("inputs was created under torch.inference_mode()", "pass inputs.clone()")
    with refused(ValueError, *said, model=net):
        attribute(net, x)
    torch.testing.assert_close(attribute(net, x.clone()), attribute(net, samples()))


@every_way
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite_are_refused_by_sample(attribute: Attribution, value: float) -> None:
    net, x = small_net(), samples(3)
    x[1, 2] = value
    with refused(ValueError, "inputs holds NaN or infinity in sample 1;", "expected finite numbers", model=net):
        attribute(net, x)
    x[2, 0] = value
    with refused(ValueError, "in samples 1, 2;", model=net):
        attribute(net, x)


def test_the_input_that_is_not_finite_is_named() -> None:
    bad = torch.tensor([[1.0], [float("nan")]])
    with refused(ValueError, "inputs[1] holds NaN or infinity in sample 1"):
        InputCAV(lambda x, y: x + y).attribute((torch.ones(2, 1), bad))


@every_way
def test_an_empty_batch_is_refused(attribute: Attribution) -> None:
    net = small_net()
    with refused(ValueError, "inputs is empty (shape (0, 4))", "expected at least one sample", model=net):
        attribute(net, torch.ones(0, 4))


def test_an_empty_tuple_is_refused() -> None:
    net = small_net()
    with refused(ValueError, "inputs is an empty tuple", "at least one tensor", model=net):
        InputCAV(net).attribute(())


@every_way
def test_devices_that_differ_are_refused(attribute: Attribution) -> None:
    net = small_net()
    with refused(ValueError, "inputs is on meta and the model on cpu", "move one with .to(device)", model=net):
        attribute(net, torch.ones(2, 4, device="meta"))


@every_way
@pytest.mark.parametrize("given", [np.ones((2, 4)), [1.0, 2.0], None, "x"], ids=["array", "list", "None", "str"])
def test_inputs_that_are_no_tensors_are_refused(attribute: Attribution, given: Any) -> None:
    net = small_net()
    name = type(given[0] if isinstance(given, list) else given).__name__
    with refused(TypeError, f"is a {name}", "expected a tensor or a tuple of tensors", model=net):
        attribute(net, given)


@every_way
def test_complex_inputs_are_refused(attribute: Attribution) -> None:
    net = small_net()
    with refused(TypeError, "inputs is complex (torch.complex64)", "real numbers", model=net):
        attribute(net, samples() + 0j)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integer_inputs_are_refused_where_they_would_have_to_carry(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3))
    x = torch.ones(2, 3).to(dtype)
    said = (f"inputs are {dtype}", "use LayerCAV at the embedding layer", "floating-point inputs")
    for attribution in (InputCAV(net), NeuronCAV(net, "2")):
        with refused(TypeError, *said, model=net):
            attribution.attribute(x, 0)
    if dtype in (torch.int64, torch.int32):
        _, delta = LayerCAV(net, "0").attribute(x, 0, return_convergence_delta=True)
        assert delta.abs().max() < 1e-5


# Models in training mode -----------------------------------------------------------------------------------------


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


# Models that cannot be followed ----------------------------------------------------------------------------------


def scripted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(model)


def traced(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, samples())


compiled = pytest.mark.parametrize("compile_model", [scripted, traced])


@compiled
def test_a_scripted_model_is_refused(compile_model: Callable[[nn.Module], nn.Module]) -> None:
    net = small_net()
    model = compile_model(net)
    said = ("the model is a scripted or traced module", "pass the eager model it was made from")
    with refused(RuntimeError, *said):
        InputCAV(model)
    for make in MAKERS.values():
        for layer in ("0", net[0], next(model.children())):
            with refused(RuntimeError, *said):
                make(model, layer)


@compiled
def test_a_scripted_submodule_is_refused_by_name(compile_model: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Identity(), compile_model(small_net())))
    with refused(RuntimeError, "module '1.1' is a scripted or traced module", "pass the eager model"):
        LayerCAV(net, "0")
    with refused(RuntimeError, "module '1.1' is a scripted or traced module"):
        InputCAV(net)


@torch.jit.script
def scripted_function(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) * 2


def test_a_scripted_function_as_model_is_refused() -> None:
    with refused(RuntimeError, "forward_func is a scripted function", "pass its Python original"):
        InputCAV(scripted_function)


@pytest.mark.parametrize("model", [3, None, "resnet18", torch.ones(2)], ids=["int", "None", "str", "tensor"])
def test_a_model_that_cannot_be_called_is_refused(model: Any) -> None:
    said = (f"forward_func is a {type(model).__name__}", "expected a torch.nn.Module or another callable")
    with refused(TypeError, *said):
        InputCAV(model)
    for make in MAKERS.values():
        for layer in (small_net()[0], "0"):
            with refused(TypeError, *said):
                make(model, layer)


OUTPUTS: dict[str, tuple[Function, str]] = {
    "tuple": (lambda x: (x, x), "tuple"),
    "dict": (lambda x: {"logits": x}, "dict"),
    "None": (lambda x: None, "NoneType"),
    "number": (lambda x: float(x.detach().sum()), "float"),
}


@pytest.mark.parametrize(("function", "kind"), list(OUTPUTS.values()), ids=list(OUTPUTS))
def test_a_model_that_returns_no_tensor_is_refused(function: Function, kind: str) -> None:
    net = nn.Sequential(nn.Linear(4, 3), Apply(function))
    said = (f"the model returned a {kind}", "expected a tensor of scores", "forward_func=lambda *x: model(*x).logits")
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with refused(TypeError, *said, model=net):
            attribution.attribute(samples(), 0)


def test_a_function_that_picks_the_scores_is_followed() -> None:
    net, x = nn.Sequential(nn.Linear(4, 3), Apply(lambda x: {"logits": x})), samples()
    found = LayerCAV(lambda *x: net(*x)["logits"], net[0]).attribute(x, 1)
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0, 0.0]]).repeat(2, 1))


# Options ---------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Attribution] = {
    "layer": lambda net, **options: LayerCAV(net, "0", **options),
    "inputs": InputCAV,
    "neuron": lambda net, **options: NeuronCAV(net, "0", **options),
}
every_option = pytest.mark.parametrize("make", list(OPTIONS.values()), ids=list(OPTIONS))


@every_option
@pytest.mark.parametrize("normalize", ["Score", "sum", False, 0, []], ids=repr)
def test_an_unknown_normalization_is_refused(make: Attribution, normalize: Any) -> None:
    with refused(ValueError, f"normalize is {normalize!r}", 'expected "score", "abs" or None'):
        make(small_net(), normalize=normalize)


@every_option
@pytest.mark.parametrize("on_unknown", ["raise", None, True], ids=repr)
def test_an_unknown_choice_for_unknown_operations_is_refused(make: Attribution, on_unknown: Any) -> None:
    with refused(ValueError, f"on_unknown is {on_unknown!r}", 'expected "error" or "gradient"'):
        make(small_net(), on_unknown=on_unknown)


# Scores ----------------------------------------------------------------------------------------------------------


def score_net() -> nn.Sequential:
    """Scores ``x0 + x1`` and ``x0 - x1``, behind a layer "0" that hands its input on."""
    net = nn.Sequential(nn.Identity(), nn.Linear(2, 2, bias=False))
    net[1].weight.data.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    return net


NEAR_ZERO = torch.tensor([[1.0, 3.0], [2.0, 2.0], [1.0, 1.0 + 2**-22]])
SCORED: dict[str, Attribution] = {
    "layer": lambda **options: LayerCAV(score_net(), "0", **options).attribute(NEAR_ZERO, 1),
    "inputs": lambda **options: InputCAV(score_net(), **options).attribute(NEAR_ZERO, 1),
    "neuron": lambda **options: NeuronCAV(score_net(), "1", **options).attribute(NEAR_ZERO, 1),
}
every_score = pytest.mark.parametrize("attribute", list(SCORED.values()), ids=list(SCORED))


@every_score
@pytest.mark.parametrize("normalize", ["score", "abs"])
def test_a_score_at_or_near_zero_warns_and_names_the_samples(attribute: Attribution, normalize: str) -> None:
    said = r"the score of samples 1, 2 is at or near zero.*normalize=None gives"
    with pytest.warns(ScoreWarning, match=said) as caught:
        ratios = attribute(normalize=normalize)
    assert len(caught) == 1
    sign = -1 if normalize == "score" else 1
    torch.testing.assert_close(ratios[0], sign * torch.tensor([0.5, -1.5]))
    assert not ratios[1].isfinite().any()


@every_score
def test_contributions_in_units_of_the_score_are_finite_without_warning(attribute: Attribution) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        contributions = attribute(normalize=None)
    torch.testing.assert_close(contributions, NEAR_ZERO * torch.tensor([1.0, -1.0]))


def test_one_score_at_zero_is_named_by_its_sample() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    with pytest.warns(ScoreWarning, match="the score of sample 0 is at or near zero"):
        InputCAV(lambda x: x.sum(1)).attribute(x)


def test_a_small_score_among_small_scores_does_not_warn() -> None:
    x = NEAR_ZERO[:1] * 1e-12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ratios = InputCAV(score_net()).attribute(x, 0)
    torch.testing.assert_close(ratios, torch.tensor([[0.25, 0.75]]))


# Operations without a rule ---------------------------------------------------------------------------------------

UNKNOWN: dict[str, tuple[Function, str]] = {
    "torch.special.i0": (torch.special.i0, "special_i0"),
    "torch.i0": (torch.i0, "i0"),
    "Tensor.i0": (lambda x: x.i0(), "i0"),
    "Tensor.i0_": (lambda x: x.i0_(), "i0"),
    "aten.i0": (torch.ops.aten.i0.default, "i0"),
    "torch.special.i1": (torch.special.i1, "special_i1"),
}
unknown = pytest.mark.parametrize(("function", "name"), list(UNKNOWN.values()), ids=list(UNKNOWN))


def rule_in(message: str) -> dict[Any, Any]:
    """The rules that an error's advice spells out, as a user would paste them."""
    found = re.search(r"rules=(\{.+?: rules\.\w+\})", message)
    assert found, message
    return eval(found[1], {"torch": torch, "rules": rules})  # noqa: S307


@unknown
def test_an_unknown_operation_is_refused_with_advice_that_works(function: Function, name: str) -> None:
    net, x = net_around(nn.Identity(), Apply(function)), samples().double()
    said = (
        f"{name!r} in module 'middle.1' (Apply) has no rule",
        "from captum_cav import rules",
        "rules.linear where y is linear in its input",
        "your own function of a rules.Operation",
        'on_unknown="gradient" goes on with its plain gradient',
    )
    with refused(NotImplementedError, *said, model=net):
        InputCAV(net).attribute(x, 0)
    with pytest.raises(NotImplementedError) as caught:
        LayerCAV(net, "first").attribute(x, 0)
    ratios, delta = LayerCAV(net, "first", rules=rule_in(str(caught.value))).attribute(
        x, 0, return_convergence_delta=True
    )
    assert delta.abs().max() < 1e-12
    # Equation 7: what a unit behind the operation contributes came from its own input.
    torch.testing.assert_close(ratios, LayerCAV(net, "middle").attribute(x, 0))


def test_the_rule_that_the_documentation_names_works_and_conserves() -> None:
    net, x = net_around(Apply(torch.special.i0)), samples().double()
    own = {torch.special.i0: rules.pass_through}
    for attribution in (LayerCAV(net, "first", rules=own), InputCAV(net, rules=own)):
        _, delta = attribution.attribute(x, 0, return_convergence_delta=True)
        assert delta.abs().max() < 1e-12
    _, delta = NeuronCAV(net, "last", rules=own).attribute(x, 0, return_convergence_delta=True)
    assert delta.abs().max() < 1e-12


def test_an_unknown_linear_operation_can_be_declared_linear() -> None:
    def solved(x: torch.Tensor) -> torch.Tensor:
        root = torch.eye(x.shape[1], dtype=x.dtype) + torch.ones(x.shape[1], x.shape[1], dtype=x.dtype).tril() / 4
        return torch.cholesky_solve(x.T, root).T

    net = net_around(Apply(solved))
    x = samples().double()
    with pytest.raises(NotImplementedError) as caught:
        LayerCAV(net, "first").attribute(x, 0)
    (function,) = rule_in(str(caught.value))
    _, delta = LayerCAV(net, "first", rules={function: rules.linear}).attribute(x, 0, return_convergence_delta=True)
    assert delta.abs().max() < 1e-12


def test_an_unknown_operation_can_get_a_function_of_the_users_own() -> None:
    def own(operation: rules.Operation) -> Any:
        x = operation.args[0]
        return x * (operation.value() / x).detach()

    net, x = net_around(Apply(torch.special.i0)), samples().double()
    found = LayerCAV(net, "first", rules={torch.special.i0: own}).attribute(x, 0)
    torch.testing.assert_close(found, LayerCAV(net, "middle").attribute(x, 0))


def test_an_unknown_operation_outside_any_module_is_named_alone() -> None:
    with refused(NotImplementedError, "'special_i0' has no rule", "torch.special.i0: rules.pass_through"):
        InputCAV(lambda x: torch.special.i0(x)).attribute(samples(), 0)


def test_an_unknown_operation_of_integers_needs_no_rule() -> None:
    net = net_around(Apply(lambda x: x * torch.bucketize(x, torch.zeros(1, dtype=x.dtype))))
    _, delta = LayerCAV(net, "first").attribute(samples().double(), 0, return_convergence_delta=True)
    assert delta.abs().max() < 1e-12


@unknown
def test_an_unknown_operation_goes_on_with_its_gradient_where_asked(function: Function, name: str) -> None:
    net, x = net_around(nn.Identity(), Apply(function)), samples().double()
    said = re.escape(f"{name!r} in module 'middle.1' (Apply) has no rule; its plain gradient was passed on")
    with pytest.warns(UnsupportedOperationWarning, match=said):
        found = LayerCAV(net, "first", on_unknown="gradient").attribute(x, 0)
    hidden = net.first(x).detach().requires_grad_()
    scores = net.last(net.middle(hidden * 1))[:, 0]
    (gradient,) = torch.autograd.grad(scores.sum(), hidden)
    torch.testing.assert_close(found, hidden.detach() * gradient / scores.detach().unsqueeze(1))


# Operations that nobody sees -------------------------------------------------------------------------------------


class Cube(torch.autograd.Function):
    """A function of the user's own that computes outside torch, as a kernel does."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 3)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return gradient * 3 * x**2


UNSEEN: dict[str, tuple[Function, tuple[str, ...]]] = {
    "autograd.Function": (lambda x: Cube.apply(x), ("Cube, a custom autograd.Function", "cannot see")),
    "its apply, taken before": (Cube.apply, ("made by 'CubeBackward'", "apply was taken beforehand")),
    "scripted function": (scripted_function, ("a scripted function",)),
}
unseen = pytest.mark.parametrize(("function", "said"), list(UNSEEN.values()), ids=list(UNSEEN))
ADVICE = ("Write that step in torch operations", "detach the tensor")


@unseen
def test_an_unseen_operation_behind_a_layer_is_refused_by_name(function: Function, said: tuple[str, ...]) -> None:
    net, x = net_around(nn.Identity(), Apply(function)), samples().double()
    for _ in range(3):  # scripted functions are optimised from the second call on
        for attribution in (LayerCAV(net, "first"), LayerCAV(net, "middle.0"), InputCAV(net)):
            with refused(NotImplementedError, *said, *ADVICE, "in module 'middle.1' (Apply)", model=net):
                attribution.attribute(x, 0)


@unseen
def test_an_unseen_operation_that_ends_the_model_is_refused_by_name(function: Function, said: tuple[str, ...]) -> None:
    net, x = nn.Sequential(nn.Linear(4, 3), Apply(function)), samples()
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with refused(NotImplementedError, *said, *ADVICE, model=net):
            attribution.attribute(x, 0)


@unseen
@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_an_unseen_operation_between_two_layers_is_refused_by_name(
    function: Function, said: tuple[str, ...], at_input: bool
) -> None:
    net, x = net_around(nn.Identity(), Apply(function)), samples().double()
    second = "last" if at_input else "middle"
    with refused(NotImplementedError, *said, *ADVICE, model=net):
        LayerCAV(net, ["first", second]).attribute(x, 0, attribute_to_layer_input=at_input)


@unseen
@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_an_unseen_operation_before_a_neuron_is_refused_by_name(
    function: Function, said: tuple[str, ...], at_input: bool
) -> None:
    net, x = net_around(nn.Identity(), Apply(function)), samples().double()
    layer = "last" if at_input else "middle"
    with refused(NotImplementedError, *said, *ADVICE, model=net):
        NeuronCAV(net, layer).attribute(x, 0, attribute_to_neuron_input=at_input)


@unseen
def test_an_unseen_operation_before_the_layer_does_not_matter(function: Function, said: tuple[str, ...]) -> None:
    net, x = net_around(nn.Identity(), Apply(function)), samples().double()
    found, delta = LayerCAV(net, "last").attribute(x, 0, attribute_to_layer_input=True, return_convergence_delta=True)
    hidden = net.middle(net.first(x))
    torch.testing.assert_close(found, hidden.detach() * net.last.weight.detach()[0] / net(x).detach()[:, :1])
    assert delta.abs().max() < 1e-12


# Scores that do not depend on the layer --------------------------------------------------------------------------


Way = Callable[[nn.Module, nn.Module, torch.Tensor], torch.Tensor]


class Beside(nn.Module):
    """A score that is computed from layers "first", "side" and "head" in some way."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        with seeded():
            self.first, self.side, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.way(self.side, self.head, self.first(x))


def computed_before(side: nn.Module, head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    scores = head(x)
    side(x)
    return scores


def layer_under_no_grad(side: nn.Module, head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y = side(x)
    return head(y)


def head_under_no_grad(side: nn.Module, head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = side(x)
    with torch.no_grad():
        return head(y)


def all_under_no_grad(side: nn.Module, head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return head(side(x))


INDEPENDENT: dict[str, Way] = {
    "computed-before": computed_before,
    "head-under-no_grad": head_under_no_grad,
    "all-under-no_grad": all_under_no_grad,
    "detached": lambda side, head, x: head(side(x).detach()),
    "data": lambda side, head, x: head(side(x).data),
    "copied": lambda side, head, x: head(torch.tensor(side(x).tolist())),
    "detached-branch": lambda side, head, x: head(x + side(x).detach()),
    "gate": lambda side, head, x: head(x * side(x).sigmoid()),
}
independent = pytest.mark.parametrize("way", list(INDEPENDENT.values()), ids=list(INDEPENDENT))
CUTTING: dict[str, Way] = {
    "layer-under-no_grad": layer_under_no_grad,
    **{way: INDEPENDENT[way] for way in ("head-under-no_grad", "all-under-no_grad", "detached", "data", "copied")},
}
cut = pytest.mark.parametrize("way", list(CUTTING.values()), ids=list(CUTTING))


@independent
def test_a_layer_that_the_score_does_not_depend_on_is_refused(way: Way) -> None:
    net = Beside(way)
    said = ("the score does not depend on", "'side'", "computed before the layer, under torch.no_grad(), from detached")
    for layers in ("side", ["side", "head"], ["first", "side"]):
        with refused(RuntimeError, *said, model=net):
            LayerCAV(net, layers).attribute(samples(), 0)


def test_a_layer_under_no_grad_carries_where_the_model_goes_on_with_its_output() -> None:
    frozen, twin = Beside(layer_under_no_grad), Beside(lambda side, head, x: head(side(x)))
    found, delta = LayerCAV(frozen, "side").attribute(samples(), 0, return_convergence_delta=True)
    torch.testing.assert_close(found, LayerCAV(twin, "side").attribute(samples(), 0))
    assert delta.abs().max() < 1e-5
    with refused(RuntimeError, "the score does not depend on layer 'first'", model=frozen):
        LayerCAV(frozen, ["first", "side"]).attribute(samples(), 0)


@cut
def test_inputs_that_the_score_does_not_depend_on_are_refused(way: Way) -> None:
    net = Beside(way)
    with refused(RuntimeError, "the score does not depend on the inputs", "under torch.no_grad()", model=net):
        InputCAV(net).attribute(samples(), 0)
    with refused(RuntimeError, "the score does not depend on the inputs", model=net):
        NeuronCAV(net, "head").attribute(samples(), 0)


@independent
def test_materialize_grads_gives_zeros_for_such_a_layer(way: Way) -> None:
    net, x = Beside(way), samples()
    materialize = {"grad_kwargs": {"materialize_grads": True}}
    assert torch.equal(LayerCAV(net, "side").attribute(x, 0, **materialize), torch.zeros(2, 4))
    at_side, at_head = LayerCAV(net, ["side", "head"]).attribute(x, 0, **materialize)
    assert torch.equal(at_side, torch.zeros(2, 4))
    torch.testing.assert_close(at_head, torch.tensor([[1.0, 0.0, 0.0]]).repeat(2, 1))


@cut
def test_materialize_grads_gives_zeros_for_such_inputs(way: Way) -> None:
    ratios = InputCAV(Beside(way)).attribute(samples(), 0, grad_kwargs={"materialize_grads": True})
    assert torch.equal(ratios, torch.zeros(2, 4))


@independent
def test_materialize_grads_says_what_bypasses_such_a_layer(way: Way) -> None:
    _, delta = LayerCAV(Beside(way), "side").attribute(
        samples(), 0, return_convergence_delta=True, grad_kwargs={"materialize_grads": True}
    )
    torch.testing.assert_close(delta, torch.ones(2))
