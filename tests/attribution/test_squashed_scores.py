"""Models that end in a squashing function: the logit behind it, signs that the function turns round, and warnings."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, NeuronCAV, rules, verify
from captum_cav.errors import ModelError, ScoreWarning, SignWarning, TargetError, UnsupportedOperationError
from tests.support.errors import no_warnings
from tests.support.networks import fixed

Function = Callable[[torch.Tensor], torch.Tensor]


# Functions of logits of shape (N, C, ...) ---------------------------------------------------------------------------


def softmax_by_hand(z: torch.Tensor) -> torch.Tensor:
    exponentials = torch.exp(z)
    return exponentials / exponentials.sum(1, keepdim=True)


def stable_softmax_by_hand(z: torch.Tensor) -> torch.Tensor:
    exponentials = torch.exp(z - z.amax(1, keepdim=True))
    return exponentials / exponentials.sum(1, keepdim=True)


#: The probability of each logit on its own.
OF_EACH: dict[str, Function] = {
    "sigmoid": torch.sigmoid,
    "nn.Sigmoid": nn.Sigmoid(),
    "expit": torch.special.expit,
    "1 / (1 + exp(-z))": lambda z: 1 / (1 + torch.exp(-z)),
    "(1 + exp(-z)) ** -1": lambda z: (1 + torch.exp(-z)) ** -1,
    "exp(z) / (1 + exp(z))": lambda z: torch.exp(z) / (1 + torch.exp(z)),
    "exp(logsigmoid)": lambda z: F.logsigmoid(z).exp(),
    "logsigmoid": F.logsigmoid,
    "log(sigmoid)": lambda z: torch.log(torch.sigmoid(z)),
}
#: The probability of each class, and its logarithm.
OF_CLASSES: dict[str, Function] = {
    "softmax": lambda z: torch.softmax(z, 1),
    "nn.Softmax": nn.Softmax(1),
    "softmax by hand": softmax_by_hand,
    "softmax by hand, maximum subtracted": stable_softmax_by_hand,
    "exp(log_softmax)": lambda z: torch.log_softmax(z, 1).exp(),
    "exp(z - logsumexp)": lambda z: torch.exp(z - torch.logsumexp(z, 1, keepdim=True)),
    "log_softmax": lambda z: F.log_softmax(z, 1),
    "z - logsumexp": lambda z: z - torch.logsumexp(z, 1, keepdim=True),
    "z - log(sum(exp))": lambda z: z - torch.log(torch.exp(z).sum(1, keepdim=True)),
    "log(softmax)": lambda z: torch.log(torch.softmax(z, 1)),
}
FUNCTIONS = OF_EACH | OF_CLASSES

WEIGHT, BIAS = fixed(4, 3, seed=31), fixed(4, seed=32)
#: Logits of both signs for each target.
INPUTS = torch.tensor([[1.0, 0.5, -2.0], [-1.0, 2.0, 2.0], [0.5, -1.5, 0.5]], dtype=torch.float64)

every_function = pytest.mark.parametrize("squash", list(FUNCTIONS.values()), ids=list(FUNCTIONS))
function_of_each = pytest.mark.parametrize("squash", list(OF_EACH.values()), ids=list(OF_EACH))


def head(x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, WEIGHT, BIAS)


def test_the_targets_have_logits_of_both_signs() -> None:
    signs = head(INPUTS).sign()
    assert all({-1.0, 1.0} == set(column.tolist()) for column in signs.T)


# What came before the function ---------------------------------------------------------------------------------------


@every_function
@pytest.mark.parametrize("normalize", ["score", "abs", None])
def test_the_logit_is_explained(squash: Function, normalize: Any) -> None:
    explained = InputCAV(lambda x: squash(head(x)), score="logit", normalize=normalize)
    plain = InputCAV(head, normalize=normalize)
    for target in (0, 3, [1, 2, -1]):
        found, delta = explained.attribute(INPUTS, target, return_convergence_delta=True)
        expected, expected_delta = plain.attribute(INPUTS, target, return_convergence_delta=True)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(delta, expected_delta, rtol=0, atol=1e-12)  # in units of the logit


@every_function
def test_positive_always_raised_the_score(squash: Function) -> None:
    """With "abs", whatever the sign of the logit, and whether the output or the logit is explained."""
    expected = INPUTS * WEIGHT[1] / head(INPUTS)[:, 1:2].abs()
    for score in ("output", "logit"):
        with no_warnings():
            cav = InputCAV(lambda x: squash(head(x)), normalize="abs", score=score)
            found, delta = cav.attribute(INPUTS, 1, return_convergence_delta=True)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        assert delta.abs().max() < 1e-10


@function_of_each
@pytest.mark.parametrize(
    ("shape", "target"),
    [
        ((), None),
        ((1,), None),
        ((1,), 0),
        ((4,), 2),
        ((4, 2, 3), (1, 0, 2)),
        ((4, 2, 3), [(1, 0, 2), (0, 1, 1), (3, 1, 0)]),
    ],
    ids=str,
)
def test_outputs_of_any_shape(squash: Function, shape: tuple[int, ...], target: Any) -> None:
    weight = fixed(torch.Size(shape).numel(), 3, seed=33)

    def logits(x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight).reshape(len(x), *shape)

    for score in ("output", "logit"):
        found = InputCAV(lambda x: squash(logits(x)), normalize="abs", score=score).attribute(INPUTS, target)
        torch.testing.assert_close(found, InputCAV(logits, normalize="abs").attribute(INPUTS, target))


@pytest.mark.parametrize("squash", list(OF_CLASSES.values()), ids=list(OF_CLASSES))
def test_a_map_of_classes(squash: Function) -> None:
    """Segmentation: classes in dimension 1, and places behind."""
    kernel, x = fixed(4, 2, 1, 1, seed=34), fixed(2, 2, 3, 3, seed=35)
    logits = lambda x: F.conv2d(x, kernel)  # noqa: E731
    for score in ("output", "logit"):
        found = InputCAV(lambda x: squash(logits(x)), normalize="abs", score=score).attribute(x, (1, 2, 0))
        torch.testing.assert_close(found, InputCAV(logits, normalize="abs").attribute(x, (1, 2, 0)))


def test_one_sample_and_no_dimension() -> None:
    found = InputCAV(lambda x: torch.sigmoid((x * WEIGHT[0]).sum()), normalize="abs").attribute(INPUTS[:1])
    torch.testing.assert_close(found, INPUTS[:1] * WEIGHT[0] / (INPUTS[0] @ WEIGHT[0]).abs())


MOVES: dict[str, tuple[Function, Any]] = {
    "squeeze": (lambda p: p.unsqueeze(2).squeeze(2), 1),
    "view": (lambda p: p.view(3, 2, 2), (0, 1)),
    "flatten": (lambda p: p.view(3, 2, 2).flatten(1), 1),
    "getitem": (lambda p: p[:, 1], None),
    "slice": (lambda p: p[:, 1:3], 0),
    "select": (lambda p: p.select(1, 1), None),
    "transpose": (lambda p: p.T.contiguous().T, 1),
    "another type": (lambda p: p.float(), 1),
    "clone": (lambda p: p.clone(), 1),
}


@every_function
@pytest.mark.parametrize(("move", "target"), list(MOVES.values()), ids=list(MOVES))
def test_behind_the_function_only_moves(squash: Function, move: Function, target: Any) -> None:
    expected = INPUTS * WEIGHT[1] / head(INPUTS)[:, 1:2].abs()
    for score in ("output", "logit"):
        cav = InputCAV(lambda x: move(squash(head(x))), normalize="abs", score=score)
        torch.testing.assert_close(cav.attribute(INPUTS, target), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preset", ["gamma", "epsilon_plus", "attnlrp", "cp_lrp", "pinpoint"])
@every_function
def test_under_other_rules(squash: Function, preset: str) -> None:
    """The logit's map does not depend on the rule of the function, and no rule turns its signs."""
    plain = InputCAV(head, rules=preset, normalize="abs").attribute(INPUTS, 1)
    model = lambda x: squash(head(x))  # noqa: E731
    torch.testing.assert_close(
        InputCAV(model, rules=preset, normalize="abs", score="logit").attribute(INPUTS, 1), plain
    )
    if preset != "attnlrp":  # where a softmax gives all logits a share
        found = InputCAV(model, rules=preset, normalize="abs").attribute(INPUTS, 1)
        torch.testing.assert_close(found.sign(), plain.sign())


@pytest.mark.parametrize("score", ["output", "logit"])
def test_a_rule_of_the_function_itself(score: Any) -> None:
    """The derivative of a sigmoid is positive, so that no sign turns round, and nothing is warned of."""
    options: dict[str, Any] = {"rules": {torch.sigmoid: rules.GradientRule()}, "score": score, "normalize": None}
    cav = InputCAV(lambda x: torch.sigmoid(head(x)), **options)
    with no_warnings():
        found = cav.attribute(INPUTS, 1)
    assert torch.equal(found.sign(), (INPUTS * WEIGHT[1]).sign())


# Layers, neurons, many targets ---------------------------------------------------------------------------------------


def network(squash: Function | None = None) -> nn.Sequential:
    class Last(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z if squash is None else squash(z)

    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), Last()).double().eval()
    for seed, parameter in enumerate(net.parameters(), 40):
        parameter.data.copy_(fixed(*parameter.shape, seed=seed))
    return net


@every_function
def test_layers_and_many_targets(squash: Function) -> None:
    net, plain = network(squash), network()
    targets = [0, 1, [2, 3, 0]]
    options: dict[str, Any] = {"return_convergence_delta": True}
    expected = LayerCAV(plain, ["0", "1"], normalize="abs").attribute_targets(INPUTS, targets, **options)
    for score in ("output", "logit"):
        cav = LayerCAV(net, ["0", "1"], normalize="abs", score=score)
        for (maps, deltas), (like, _) in zip(cav.attribute_targets(INPUTS, targets, **options), expected, strict=True):
            torch.testing.assert_close(maps, like, rtol=1e-10, atol=1e-12)
            assert max(float(delta.abs().max()) for delta in deltas) < 1e-10


@every_function
def test_neurons(squash: Function) -> None:
    net, plain = network(squash), network()
    for neuron in range(4):
        with no_warnings():
            found, delta = NeuronCAV(net, "3", normalize="abs").attribute(INPUTS, neuron, return_convergence_delta=True)
        torch.testing.assert_close(found, NeuronCAV(plain, "3", normalize="abs").attribute(INPUTS, neuron))
        assert delta.abs().max() < 1e-10


def test_the_sum_of_neurons_with_logits_of_both_signs_warns() -> None:
    assert {-1.0, 1.0} == set(network()(INPUTS)[:1].sign().flatten().tolist())
    cav = NeuronCAV(network(torch.sigmoid), "3", normalize="abs")
    with pytest.warns(SignWarning, match=r"the neuron's value is squashed .*; explain one neuron at a time"):
        cav.attribute(INPUTS, (slice(None),))


def test_a_layer_behind_the_function_keeps_its_signs() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Identity()).double()
    with no_warnings():
        found = LayerCAV(net, ["1", "2"], normalize="abs").attribute(INPUTS, 1)
    for one in found:
        torch.testing.assert_close(one, torch.eye(4, dtype=torch.float64)[1].expand(3, 4))
    with pytest.warns(SignWarning, match="layers behind the function apart from layers before"):
        LayerCAV(net, ["0", "1"], normalize="abs").attribute(INPUTS, 1)
    with pytest.raises(ModelError, match=r'score="logit" .* the explained layers lie behind the function'):
        LayerCAV(net, "1", score="logit").attribute(INPUTS, 1)
    with pytest.raises(ModelError, match="the score does not depend on layer '1'"):
        LayerCAV(net, ["0", "1"], score="logit", normalize="abs").attribute(INPUTS, 1)


@every_function
def test_verify_follows_the_logit(squash: Function) -> None:
    result = verify(network(squash), INPUTS, 1, score="logit")
    assert result.ok, str(result)
    assert result.score == pytest.approx(float(network()(INPUTS)[:, 1].sum()))


# Log-odds ------------------------------------------------------------------------------------------------------------


@every_function
def test_log_odds_are_those_of_the_probability(squash: Function) -> None:
    model = lambda x: squash(head(x))  # noqa: E731
    output = model(INPUTS)[:, 1]
    probability = output if bool((output > 0).all()) else output.exp()
    odds = torch.log(probability / (1 - probability))
    found, delta = InputCAV(model, score="log_odds", normalize=None).attribute(INPUTS, 1, return_convergence_delta=True)
    assert delta.abs().max() < 1e-10
    is_of_each = any(squash is one for one in OF_EACH.values())
    plain = InputCAV(head, score="output" if is_of_each else "log_odds", normalize=None).attribute(INPUTS, 1)
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)
    assert verify(model, INPUTS, 1, score="log_odds").score == pytest.approx(float(odds.sum()))


@pytest.mark.parametrize("pick", [lambda p: p[:, 1], lambda p: p[:, :3]], ids=["one class", "some classes"])
def test_log_odds_of_a_part_of_the_classes_are_refused(pick: Function) -> None:
    cav = InputCAV(lambda x: pick(torch.softmax(head(x), 1)), score="log_odds")
    with pytest.raises(TargetError, match=r'score="log_odds" compares classes: expected an output of shape'):
        cav.attribute(INPUTS, 0 if pick(INPUTS).dim() > 1 else None)


def test_log_odds_behind_a_reshaping() -> None:
    model = lambda x: torch.softmax(head(x)[:, :, None, None], 1).flatten(1)  # noqa: E731
    found = InputCAV(model, score="log_odds", normalize=None).attribute(INPUTS, 1)
    torch.testing.assert_close(found, InputCAV(head, score="log_odds", normalize=None).attribute(INPUTS, 1))


# No squashing function, or one that cannot be seen through -----------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        head,
        lambda x: F.elu(head(x)),
        lambda x: torch.sigmoid(head(x)) * head(x),
        lambda x: torch.softmax(head(x), 1) @ head(x.flip(0))[:, None, 0].new_ones(4, 1) + head(x),
        lambda x: head(x).tanh(),
    ],
    ids=["linear", "elu", "a gate times a signal", "a sum with a signal", "tanh"],
)
@pytest.mark.parametrize("normalize", ["abs", None])
def test_without_a_squashing_function_the_logit_is_the_output(model: Function, normalize: Any) -> None:
    for target in range(4):
        with no_warnings():
            found = InputCAV(model, score="logit", normalize=normalize).attribute(INPUTS + 2, target)
        torch.testing.assert_close(
            found, InputCAV(model, normalize=normalize).attribute(INPUTS + 2, target), equal_nan=True
        )


HIDDEN: dict[str, Function] = {
    "2 p - 1": lambda z: 2 * torch.sigmoid(z) - 1,
    "a product of probabilities": lambda z: torch.sigmoid(z) * torch.softmax(z, 1),
    "a mean of probabilities": lambda z: (torch.softmax(z, 1) + torch.softmax(2 * z, 1)) / 2,
    "a weighted probability": lambda z: torch.softmax(z, 1) * torch.arange(1.0, 5.0, dtype=z.dtype),
    "a bounded probability": lambda z: torch.sigmoid(z).clamp(1e-6, 1 - 1e-6),
    "negative log-likelihood": lambda z: -torch.log_softmax(z, 1),
    "negative log-likelihood by hand": lambda z: -(z - torch.logsumexp(z, 1, keepdim=True)),
    "a mean of log-probabilities": lambda z: (torch.log_softmax(z, 1) + torch.log_softmax(2 * z, 1)) / 2,
    "root": lambda z: torch.softmax(z, 1).sqrt(),
    "log(p + epsilon)": lambda z: torch.log(torch.softmax(z, 1) + 1e-9),
    "log1p(-p)": lambda z: torch.log1p(-torch.sigmoid(z)),
    "two classes of one logit": lambda z: torch.stack([1 - torch.sigmoid(z[:, 0]), torch.sigmoid(z[:, 0])], 1),
    "joined heads": lambda z: torch.cat([torch.sigmoid(z[:, :2]), torch.sigmoid(z[:, 2:])], 1),
    "in place": lambda z: z.sigmoid_(),
    "(1 + tanh(z / 2)) / 2": lambda z: (1 + torch.tanh(z / 2)) / 2,
    "-softplus(-z)": lambda z: -F.softplus(-z),
    "exp": torch.exp,
    "softplus": F.softplus,
    "hardsigmoid": F.hardsigmoid,
    "probit": torch.special.ndtr,
    "log of probit": torch.special.log_ndtr,
    "sum over the classes": lambda z: torch.sigmoid(z).cumsum(1),
}


@pytest.mark.parametrize("model", list(HIDDEN.values()), ids=list(HIDDEN))
@pytest.mark.parametrize("score", ["logit", "log_odds"])
def test_a_function_that_cannot_be_seen_through_is_named(model: Function, score: Any) -> None:
    with pytest.raises(ModelError, match=rf'score="{score}" needs what the last squashing function takes'):
        InputCAV(lambda x: model(head(x)), score=score).attribute(INPUTS, 1)
    said = "the score is computed from a sigmoid, a softmax or the like in a way that cannot be followed"
    for normalize in ("score", "abs", None):
        with pytest.warns(SignWarning, match=said) as caught:
            InputCAV(lambda x: model(head(x)), score="output", normalize=normalize).attribute(INPUTS, 1)
        assert len(caught) == 1


def test_contributions_with_a_graph_are_refused() -> None:
    cav = InputCAV(nn.Sequential(nn.Linear(3, 4), nn.Sigmoid()).double(), rules="attnlrp", score="logit")
    with pytest.raises(UnsupportedOperationError, match="create_graph=True"):
        cav.attribute(INPUTS, 1, grad_kwargs={"create_graph": True})


# Warnings ------------------------------------------------------------------------------------------------------------


def warned(attribute: Callable[..., Any], *args: Any) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attribute(*args)
    return [one for one in caught if issubclass(one.category, ScoreWarning)]


@every_function
@pytest.mark.parametrize("normalize", ["score", None])
def test_signs_that_are_turned_round_are_told(squash: Function, normalize: Any) -> None:
    cav = InputCAV(lambda x: squash(head(x)), normalize=normalize)
    for target in range(4):
        for row in INPUTS:
            logit, output = (float(one[0, target]) for one in (head(row[None]), squash(head(row[None]))))
            is_turned = logit < 0 if normalize == "score" else logit * output < 0
            found = warned(cav.attribute, row[None], target)
            assert [one.category for one in found] == [SignWarning] * is_turned
            (ratios,) = cav.attribute(row[None], target)
            assert torch.equal(ratios.sign(), (row * WEIGHT[target]).sign() * (-1 if is_turned else 1))


def test_the_text_says_what_to_do() -> None:
    model = lambda x: torch.sigmoid(head(x))  # noqa: E731
    said = (
        r'^the score is squashed by a function such as a sigmoid, .*; normalize="abs" keeps positive for what raised it'
    )
    with pytest.warns(SignWarning, match=said):
        InputCAV(model).attribute(INPUTS, 1)
    with pytest.warns(SignWarning, match=r'; score="logit" explains the logit'):
        InputCAV(model, normalize=None).attribute(INPUTS, 1)
    with pytest.warns(SignWarning, match=r'^the score is negative in some samples.*; normalize="abs" keeps'):
        InputCAV(head).attribute(INPUTS, 1)
    with no_warnings():
        InputCAV(model, normalize="abs").attribute(INPUTS, 1)
        InputCAV(model, normalize=None, score="logit").attribute(INPUTS, 1)
        InputCAV(head, normalize="abs").attribute(INPUTS, 1)


def test_a_warning_is_shown_once_for_each_line_that_asks() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for model in (head, lambda x: head(2 * x)):
            for target in range(4):
                InputCAV(model).attribute(INPUTS, target)  # here
                LayerCAV(network(), "1").attribute(INPUTS, target)  # and here
    lines = [
        number for number, line in enumerate(Path(__file__).read_text().splitlines(), 1) if "here\n" in f"{line}\n"
    ]
    assert [(one.filename, one.lineno) for one in caught] == [(__file__, line) for line in lines]
