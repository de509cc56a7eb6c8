"""Maps of networks that forgot what they learned, and of other classes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import LayerCAV
from captum_cav.errors import CAVTypeError, InputError, ModelError, OptionError, TargetError
from captum_cav.metrics import model_randomisation, random_logit
from tests.metrics import reference
from tests.metrics.networks import convolutional, pictures
from tests.support.ids import without_address

TARGETS = [2, 0, 1]


def relevance(model: Any, inputs: torch.Tensor, target: Any) -> torch.Tensor:
    found: torch.Tensor = LayerCAV(model, "5", normalize=None).attribute(inputs, target).sum(1)
    return found


def brightness(model: Any, inputs: torch.Tensor, target: Any) -> torch.Tensor:
    return inputs.sum(1)


class Notes:
    """Explains by ``function``, and keeps what it was asked."""

    def __init__(self, function: Callable[..., torch.Tensor] = brightness) -> None:
        self.function = function
        self.states: list[dict[str, torch.Tensor]] = []
        self.targets: list[Any] = []

    def __call__(self, model: Any, inputs: torch.Tensor, target: Any) -> torch.Tensor:
        if isinstance(model, nn.Module):
            self.states.append({name: value.clone() for name, value in model.state_dict().items()})
        self.targets.append(target)
        return self.function(model, inputs, target)


def drawn(model: nn.Module, inputs: torch.Tensor, **options: Any) -> list[set[str]]:
    """Of each stage, which parameters differ from the model's."""
    notes = Notes()
    model_randomisation(model, inputs, brightness(model, inputs, 0), 0, notes, **options)
    names = dict(model.named_parameters())
    return [{name for name in names if not torch.equal(state[name], names[name])} for state in notes.states]


def likeness(one: torch.Tensor, other: torch.Tensor) -> list[float]:
    pairs = zip(one, other, strict=True)
    return [abs(reference.spearman(reference.places(a), reference.places(b))) for a, b in pairs]


def test_the_cascade_by_hand() -> None:
    model, inputs = convolutional(), pictures(3)
    maps = relevance(model, inputs, TARGETS)
    copied, found = copy.deepcopy(model), []
    for number, name in enumerate(["8", "4", "1", "0"]):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7 + number)
            copied.get_submodule(name).reset_parameters()
        found.append(likeness(maps, relevance(copied, inputs, TARGETS)))
    expected = [sum(values) / 4 for values in zip(*found, strict=True)]
    measured = model_randomisation(model, inputs, maps, TARGETS, relevance, seed=7)
    torch.testing.assert_close(measured, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert ((measured > 0) & (measured < 0.95)).all()
    assert not torch.equal(measured, model_randomisation(model, inputs, maps, TARGETS, relevance, seed=8))
    # One stage is the last layer alone.
    first = model_randomisation(model, inputs, maps, TARGETS, relevance, seed=7, stages=1)
    torch.testing.assert_close(first, torch.tensor(found[0], dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("stages", "expected"), [(1, [1]), (2, [1, 4]), (3, [1, 2, 4]), (4, [1, 2, 3, 4]), (99, [1, 2, 3, 4])]
)
def test_stages_are_spread_from_one_layer_to_all(stages: int, expected: list[int]) -> None:
    changed = drawn(convolutional(), pictures(2), stages=stages)
    layers = ["8", "4", "1", "0"]
    assert [{name.partition(".")[0] for name in names} for names in changed] == [set(layers[:n]) for n in expected]


class Backwards(nn.Module):
    """Defined in another order than run; a reused layer, attention, weights of a norm's, a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.unused = nn.Linear(2, 2)
        self.again = nn.Linear(8, 8)
        self.scaled = nn.utils.weight_norm(nn.Linear(8, 8))  # the old form, whose weight is no parameter
        self.spectral = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.stem = nn.Linear(2, 8)
        self.position = nn.Parameter(torch.randn(1, 8))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        tokens = self.stem(inputs.flatten(2).mT) + self.position
        tokens = self.again(self.spectral(self.scaled(self.again(tokens))))
        attended: torch.Tensor = self.attention(tokens, tokens, tokens)[0]
        scores: torch.Tensor = self.head(attended.mean(1))
        return scores


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_order_is_that_of_the_forward_pass_and_nothing_is_left_out() -> None:
    model = Backwards().double().eval()
    with torch.no_grad():
        model(pictures(2))  # else the old norm's weight has a graph, and cannot be copied
    changed = drawn(model, pictures(2), stages=99)
    new = [after - before for before, after in zip([set(), *changed], changed, strict=False)]
    modules = [sorted({name.rpartition(".")[0] for name in names}) for names in new]
    assert modules == [
        ["head"],
        ["attention.out_proj"],
        ["attention"],
        ["again"],
        ["spectral.parametrizations.weight"],
        ["spectral"],
        ["scaled"],
        ["stem"],
        ["unused"],
        [""],
    ]
    # But for what is 0 everywhere and has no other way to begin.
    assert dict(model.named_parameters()).keys() - changed[-1] == {"attention.in_proj_bias"}
    assert not model.attention.in_proj_bias.any()


def test_a_stage_without_a_map_does_not_count() -> None:
    model, inputs = convolutional(), pictures(2)
    maps, calls = brightness(model, inputs, 0), []

    def explain(model: Any, inputs: torch.Tensor, target: Any) -> torch.Tensor:
        calls.append(target)
        return torch.zeros_like(maps) if len(calls) == 2 else maps

    assert model_randomisation(model, inputs, maps, 0, explain).tolist() == [1, 1]
    assert calls == [[0, 0]] * 4
    constant = model_randomisation(model, inputs, torch.ones_like(maps), 0, brightness)
    assert constant.isnan().all()


def test_a_rotated_map_resembles_the_map() -> None:
    model, inputs = convolutional(), pictures(2)
    found = model_randomisation(model, inputs, -brightness(model, inputs, 0), 0, brightness)
    assert found.tolist() == [1, 1]


def test_another_class_by_hand() -> None:
    model, inputs = convolutional(classes=4), pictures(6)
    targets, notes = [3, 0, 1, -1, 2, 2], Notes(relevance)
    maps = relevance(model, inputs, targets)
    found = random_logit(model, inputs, maps, targets, notes, seed=3)
    (others,) = notes.targets
    assert all(other in range(4) and other != target % 4 for other, target in zip(others, targets, strict=True))
    assert len(set(others)) > 1
    expected = likeness(maps, relevance(model, inputs, others))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert torch.equal(random_logit(model, inputs, maps, targets, relevance, seed=3), found)


def test_all_other_classes_are_drawn_about_as_often() -> None:
    notes = Notes()
    random_logit(lambda x: torch.zeros(len(x), 4), pictures(600), brightness(None, pictures(600), 0), 1, notes)
    counts = [notes.targets[0].count(index) for index in range(4)]
    assert counts[1] == 0
    assert min(counts[0], *counts[2:]) > 150


MEASURES = [model_randomisation, random_logit]


@pytest.mark.parametrize("measure", MEASURES)
def test_nothing_is_left_on_the_model(measure: Any) -> None:
    model, inputs = convolutional(), pictures(2)
    model[0].weight.requires_grad_(False)
    model[3].train()
    seen: list[Any] = []
    hook = model[2].register_forward_hook(lambda *_: seen.append(1))
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    notes = Notes()
    measure(model, inputs, brightness(model, inputs, 0), 0, notes)
    with pytest.raises(ZeroDivisionError):
        measure(model, inputs, brightness(model, inputs, 0), 0, lambda *_: 1 / 0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [len(module._forward_pre_hooks) for module in model.modules()] == [0] * 10
    assert hook.id in model[2]._forward_hooks
    assert not model[0].weight.requires_grad
    assert model[4].weight.requires_grad
    assert model[3].training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"explain": "gradcam"}, CAVTypeError, "explain is a str; expected a function of model, inputs and target"),
        ({"explain": lambda m, x, t: x}, InputError, r"what explain returned has shape \(2, 2, 8, 6\); expected"),
        ({"explain": lambda m, x, t: x[:1, 0]}, InputError, "what explain returned holds 1 examples and inputs 2"),
        ({"explain": lambda m, x, t: x[:, 0, 1:]}, InputError, r"maps of shape \(2, 7, 6\) and maps has \(2, 8, 6\)"),
        ({"explain": lambda m, x, t: x[:, 0] * math.nan}, InputError, "what explain returned holds NaN or infinity"),
        ({"maps": torch.ones(3, 8, 6)}, InputError, "maps holds 3 examples and inputs 2"),
        ({"target": [1]}, TargetError, "target lists 1 entries for 2 examples"),
        ({"model": convolutional().train()}, ModelError, r"module '1' \(BatchNorm2d\) is in training mode"),
        ({"model": 3}, CAVTypeError, "is a int; expected a torch.nn.Module or another callable"),
    ],
    ids=without_address,
)
def test_what_does_not_fit_is_refused(
    measure: Any, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {
        "model": convolutional(),
        "inputs": pictures(2),
        "maps": pictures(2).sum(1),
        "target": 1,
        "explain": brightness,
    }
    with pytest.raises(error, match=message):
        measure(**(arguments | changed))


def test_models_that_cannot_forget_or_have_no_other_class() -> None:
    inputs = pictures(2)
    maps = inputs.sum(1)
    with pytest.raises(InputError, match=r"the model \(Flatten\) has no parameters that could be drawn anew"):
        model_randomisation(nn.Flatten(), inputs, maps, 0, brightness)
    with pytest.raises(CAVTypeError, match=r"model is a builtin_function_or_method; expected a torch\.nn\.Module"):
        model_randomisation(torch.relu, inputs, maps, 0, brightness)
    with pytest.raises(OptionError, match="stages is 0; expected an integer of at least 1"):
        model_randomisation(convolutional(), inputs, maps, 0, brightness, stages=0)
    with pytest.raises(InputError, match=r"the model returned shape \(2, 1\); expected \(N, classes\) with several"):
        random_logit(convolutional(classes=1), inputs, maps, 0, brightness)
    with pytest.raises(TargetError, match="target is missing"):
        random_logit(convolutional(), inputs, maps, None, brightness)
