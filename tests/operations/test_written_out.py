"""Functions that are written out: when they get the rules of the fused functions, and when they must not."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, presets, rules, verify
from tests.support.networks import fixed

Function = Callable[[torch.Tensor], torch.Tensor]

W, V, w = fixed(5, 5, seed=1), fixed(5, 5, seed=2), fixed(5, seed=3)
X = fixed(3, 5)
BIAS, WEIGHT = fixed(5, seed=4), fixed(5, seed=5)


def gated(softmax: Function) -> Function:
    """A network in which a softmax weighs values."""
    return lambda x: (softmax(x @ W) * (x @ V)).sum(-1)


def exp_over_sum(z: torch.Tensor) -> torch.Tensor:
    e = torch.exp(z)
    return e / e.sum(-1, keepdim=True)


def rms(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def standard(x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def of_inputs(function: Function, **options: object) -> torch.Tensor:
    found: torch.Tensor = InputCAV(function, normalize=None, **options).attribute(X)  # type: ignore[arg-type]
    return found


def names_of(function: Function, **options: object) -> list[str]:
    return [row.operation for row in InputCAV(function, **options).explain_rules(X)]  # type: ignore[arg-type]


# A rule for the fused function reaches the function that is written out ---------------------------------------------


def test_the_map_of_the_issues_norm_is_that_of_the_fused_norm() -> None:
    """The two figures of the fused norm were computed by detaching the statistic."""
    torch.manual_seed(0)
    x, weights = torch.randn(1, 5), torch.randn(5)
    expected = torch.tensor([[-1.633, -0.090, -1.384, -0.310, 0.331]])
    for norm in (lambda x: F.rms_norm(x, (5,), eps=1e-6), rms):
        found = InputCAV(lambda x, norm=norm: norm(x) @ weights, rules="attnlrp", normalize=None).attribute(x)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize(
    ("fused", "written", "key", "rule"),
    [
        (
            lambda x: torch.softmax(x @ W, -1) @ w,
            lambda x: exp_over_sum(x @ W) @ w,
            torch.softmax,
            rules.AttentionRule("all"),
        ),
        (
            lambda x: torch.softmax(x @ W, -1) @ w,
            lambda x: exp_over_sum(x @ W) @ w,
            torch.softmax,
            rules.GradientRule(),
        ),
        (gated(lambda z: torch.softmax(z, -1)), gated(exp_over_sum), torch.softmax, rules.StopRule()),
        (lambda x: F.rms_norm(x, (5,), eps=1e-6) @ w, lambda x: rms(x) @ w, F.rms_norm, rules.GradientRule()),
        (
            lambda x: F.layer_norm(x, (5,), eps=1e-6) @ w,
            lambda x: standard(x) @ w,
            F.layer_norm,
            rules.NormRule("identity"),
        ),
        (
            lambda x: F.layer_norm(x, (5,), WEIGHT, BIAS, eps=1e-6) @ w,
            lambda x: (standard(x) * WEIGHT + BIAS) @ w,
            F.layer_norm,
            rules.NormRule("identity"),
        ),
        (
            lambda x: torch.sigmoid(x @ W) @ w,
            lambda x: (1 / (1 + torch.exp(-(x @ W)))) @ w,
            torch.sigmoid,
            rules.GradientRule(),
        ),
        (lambda x: F.silu(x @ W) @ w, lambda x: ((z := x @ W) * torch.sigmoid(z)) @ w, F.silu, rules.GradientRule()),
        (
            lambda x: torch.logsumexp(x @ W, -1),
            lambda x: torch.exp(x @ W).sum(-1).log(),
            torch.logsumexp,
            rules.StopRule(),
        ),
    ],
    ids=[
        "softmax, all",
        "softmax, gradient",
        "softmax, stop",
        "rms norm, gradient",
        "layer norm, identity",
        "layer norm with bias, identity",
        "sigmoid, gradient",
        "silu, gradient",
        "logsumexp, stop",
    ],
)
def test_a_rule_for_the_fused_function_counts(
    fused: Function, written: Function, key: Function, rule: rules.Rule
) -> None:
    torch.testing.assert_close(written(X), fused(X))
    options = {"rules": {key: rule}}
    if isinstance(rule, rules.StopRule) and key is torch.logsumexp:
        for function in (fused, written):
            with pytest.raises(Exception, match="does not depend"):
                of_inputs(function, **options)
        return
    expected = of_inputs(fused, **options)
    torch.testing.assert_close(of_inputs(written, **options), expected, rtol=1e-9, atol=1e-10)
    assert isinstance(rule, rules.StopRule) or (expected - of_inputs(fused)).abs().max() > 1e-3  # the rule matters


def test_the_explanation_names_the_fused_function() -> None:
    assert "softmax" in names_of(gated(exp_over_sum))
    assert "rms_norm" in names_of(lambda x: rms(x) @ w)
    assert "layer_norm" in names_of(lambda x: standard(x) @ w)
    assert "silu" in names_of(lambda x: (x * torch.sigmoid(x)) @ w)


def test_the_gradient_of_a_written_softmax_is_torchs_own() -> None:
    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(exp_over_sum(x)[:, 1].sum(), x)
    found = InputCAV(exp_over_sum, rules={torch.softmax: rules.GradientRule()}, normalize=None).attribute(X, 1)
    torch.testing.assert_close(found, X * expected, rtol=1e-12, atol=1e-14)


# The value stays the model's own ------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [gated(exp_over_sum), lambda x: rms(x) @ w, lambda x: standard(x) @ w])
def test_the_score_is_bit_for_bit_that_of_the_model(function: Function) -> None:
    seen = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        seen.append(function(x))
        return seen[-1]

    InputCAV(watched).attribute(X)
    assert torch.equal(seen[0].detach(), function(X))


def test_a_quotient_may_be_written_in_place() -> None:
    def in_place(z: torch.Tensor) -> torch.Tensor:
        e = torch.exp(z)
        e /= e.sum(-1, keepdim=True)
        return e

    for name in presets.NAMES:
        found, expected = of_inputs(gated(in_place), rules=name), of_inputs(gated(exp_over_sum), rules=name)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# What must not be taken for a function that is written out ----------------------------------------------------------


def test_a_tensor_that_was_written_into_has_no_form() -> None:
    """The sum is that of the exponentials before one of them was changed, so the quotient is no softmax."""

    def changed(z: torch.Tensor) -> torch.Tensor:
        e = torch.exp(z)
        total = e.sum(-1, keepdim=True)
        e[:, 0] = 0.0
        return e / total

    assert "softmax" not in names_of(gated(changed))
    found, delta = InputCAV(gated(changed), rules="attnlrp", normalize=None).attribute(X, return_convergence_delta=True)
    assert found.isfinite().all()
    assert delta.isfinite().all()


def test_a_view_that_was_written_into_voids_the_form_of_its_base() -> None:
    def changed(z: torch.Tensor) -> torch.Tensor:
        e = torch.exp(z)
        total = e.sum(-1, keepdim=True)
        total[0].mul_(2)
        return e / total

    assert "softmax" not in names_of(gated(changed))


@pytest.mark.parametrize(
    "quotient",
    [
        lambda z: torch.exp(z) / torch.exp(2 * z).sum(-1, keepdim=True),
        lambda z: torch.exp(z) / torch.exp(z).sum(),
        lambda z: (e := torch.exp(z)) / e.sum(-1)[:, None].mean(0, keepdim=True),
        lambda z: (e := torch.exp(z)) / e.mean(-1, keepdim=True),
    ],
    ids=["other exponentials", "all samples", "averaged", "mean"],
)
def test_what_is_no_softmax_is_not_taken_for_one(quotient: Function) -> None:
    assert "softmax" not in names_of(gated(quotient))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x @ V) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)),
        lambda x: x * torch.rsqrt(x.pow(2).mean(0, keepdim=True).mean(-1, keepdim=True) + x[:1, :1]),
        lambda x: (x - x.mean(0, keepdim=True)) / x.std(-1, keepdim=True),
    ],
    ids=["the size of another tensor", "a sum of two statistics", "the mean of other dimensions"],
)
def test_what_is_no_norm_is_not_taken_for_one(function: Function) -> None:
    assert not {"rms_norm", "layer_norm"} & set(names_of(lambda x: function(x) @ w))


def test_a_layer_inside_a_function_keeps_its_contributions() -> None:
    """The exponentials are a layer's output. The softmax must not pass them over."""

    class Exponential(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return torch.exp(z)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.exponential = Exponential()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            e = self.exponential(x @ W)
            return (e / e.sum(-1, keepdim=True)) @ w

    found, delta = LayerCAV(Net(), "exponential", normalize=None).attribute(X, return_convergence_delta=True)
    torch.testing.assert_close(found.sum(-1), Net()(X))
    assert delta.abs().max() < 1e-12


def test_a_rule_for_any_operation_is_not_passed_over() -> None:
    """Contributions stop at the exponential, although a sigmoid is made of it."""
    sigmoid = lambda x: 1 / (1 + torch.exp(-x))  # noqa: E731
    found = of_inputs(lambda x: (sigmoid(x) + x) @ w, rules={torch.exp: rules.StopRule()})
    torch.testing.assert_close(found, X * w)


# Constants ----------------------------------------------------------------------------------------------------------


def test_a_number_inside_an_activation_has_no_share_and_a_tensor_has() -> None:
    """tanh(x) = 2 sigmoid(2 x) - 1. A bias that is a tensor is a constant."""
    one = torch.ones(1, dtype=X.dtype)
    by_number, by_tensor = (
        InputCAV(lambda x, bias=bias: (2 * torch.sigmoid(2 * x) - bias) @ w, normalize=None) for bias in (1, one)
    )
    torch.testing.assert_close(by_number.attribute(X), torch.tanh(X) * w, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(by_tensor.attribute(X), 2 * torch.sigmoid(2 * X) * w, rtol=1e-9, atol=1e-12)
    for cav in (by_number, by_tensor):
        assert cav.attribute(X, return_convergence_delta=True)[1].abs().max() < 1e-12


#: Functions of single elements that are defined between 0.2 and 0.8. Those of torch between layers are among them.
OF_ELEMENTS: dict[str, Function] = {
    **{name: getattr(torch, name) for name in """
        abs acos asin asinh atan atanh cos cosh digamma erf erfc erfinv exp exp2 expm1 lgamma log log10 log1p log2 logit
        reciprocal rsqrt sigmoid sin sinc sinh sqrt square tan tanh
    """.split()},
    **{name: getattr(torch.special, name) for name in "entr erfcx log_ndtr ndtr".split()},
    **{name: getattr(F, name) for name in """
        celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu relu6 selu silu softplus
        softshrink softsign tanhshrink
    """.split()},
    "clamp": lambda x: x.clamp(0.1, 0.4),
    "clamp_max": lambda x: x.clamp_max(0.4),
    "clamp_min": lambda x: x.clamp_min(0.4),
    "pow": lambda x: x**1.7,
    "power of a number": lambda x: 1.7**x,
    "prelu": lambda x: F.prelu(x, torch.full((1,), 0.3, dtype=x.dtype)),
    "threshold": lambda x: F.threshold(x, 0.4, 0.1),
    "sqrt_": lambda x: x.sqrt_(),
    "tanh_": lambda x: x.tanh_(),
    "relu_": lambda x: x.relu_(),
}  # fmt: skip


#: Clipped from both sides, a positive number that was just added makes a hard sigmoid.
HARD_SIGMOIDS = {"relu6"}


@pytest.mark.parametrize("name", sorted(OF_ELEMENTS.keys() - HARD_SIGMOIDS))
def test_a_number_before_a_function_of_elements_is_a_constant(name: str) -> None:
    """By equations 4 and 7, in whatever form the number is added: the bias of a layer, a tensor, a number."""
    x = torch.tensor([[0.1, 0.7, 0.4]], dtype=torch.float64)
    half, bias = 0.5 * torch.eye(3, dtype=x.dtype), torch.full((3,), 0.25, dtype=x.dtype)
    z = 0.5 * x + 0.25
    for shifted in (lambda x: F.linear(x, half, bias), lambda x: 0.5 * x + bias, lambda x: 0.5 * x + 0.25):
        attribution = InputCAV(lambda x, z=shifted: OF_ELEMENTS[name](z(x)).sum(-1), normalize=None)
        found, delta = attribution.attribute(x, return_convergence_delta=True)
        torch.testing.assert_close(found, OF_ELEMENTS[name](z.clone()) * 0.5 * x / z, rtol=1e-12, atol=1e-12)
        assert delta.abs().max() < 1e-12


@pytest.mark.parametrize(
    "clipped",
    [
        lambda x: F.relu6(x + 3),
        lambda x: F.hardtanh(x + 3, 0.0, 6.0),
        lambda x: (x + 3).clamp(0, 6),
        lambda x: (x + 3).clamp_min(0).clamp_max(6),
        lambda x: F.relu(x + 3).clamp(max=6),
        lambda x: F.relu((x + 3).clamp(max=6)),
        lambda x: 6 * (x / 6 + 0.5).clamp(0, 1),
        lambda x: 6 * F.hardsigmoid(x),
    ],
)
def test_the_number_in_a_hard_sigmoid_belongs_to_the_hard_sigmoid(clipped: Function) -> None:
    """Two numbers are added: the first is a constant, the second makes the hard sigmoid."""
    x = torch.tensor([[0.1, -0.7, 0.4]], dtype=torch.float64)
    found, delta = InputCAV(lambda x: clipped(x - 1).sum(-1), normalize=None).attribute(
        x, return_convergence_delta=True
    )
    torch.testing.assert_close(found, clipped(x - 1) * x / (x - 1), rtol=1e-12, atol=1e-12)
    assert delta.abs().max() < 1e-12


def test_the_epsilon_of_a_deviation_that_carries_is_a_constant() -> None:
    """As where a model undoes its norm: ``y * deviation``. The root shares between the variance and the number."""

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(x.var(-1) + 0.5)

    # A variance is of degree 2: the half of its derivative passes contributions on.
    variance, centred = X.var(-1, keepdim=True), X - X.mean(-1, keepdim=True)
    expected = X * centred / (X.shape[-1] - 1) / torch.sqrt(variance + 0.5)
    torch.testing.assert_close(of_inputs(network), expected)


def test_a_number_behind_a_clamp_is_a_constant_in_all_spellings() -> None:
    """Like a number behind a ReLU: what follows an activation between layers does not belong to the activation."""
    x = 3 * X
    for spelling in (F.hardtanh, lambda x: x.clamp(-1, 1), lambda x: x.clamp_min(-1).clamp_max(1)):
        found = InputCAV(lambda x, spelling=spelling: (spelling(x) + 1) @ w, normalize=None).attribute(x)
        torch.testing.assert_close(found, x.clamp(-1, 1) * w)


def test_a_number_behind_a_linear_layer_is_a_constant() -> None:
    """``k x + b`` is no activation, so equation 4 counts."""
    torch.testing.assert_close(of_inputs(lambda x: (2 * x + 1) @ w), 2 * X * w)


@pytest.mark.parametrize("name", presets.NAMES)
def test_written_functions_conserve(name: str) -> None:
    def network(x: torch.Tensor) -> torch.Tensor:
        z = standard(rms(x) @ W) * WEIGHT + BIAS
        z = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        return (exp_over_sum(z @ V) * (z @ W)).sum(-1)

    assert verify(network, X, rules=name).ok or name == "attnlrp"
    _, delta = InputCAV(network, rules=name, normalize=None).attribute(X, return_convergence_delta=True)
    assert delta.abs().max() < 1e-5 or name == "attnlrp"  # the softmax of AttnLRP does not conserve


@pytest.mark.parametrize("number", [3, 3.0, 3 + 0j, True, torch.tensor(3.0)], ids=repr)
@pytest.mark.parametrize("apply", [torch.add, torch.sub, torch.mul, torch.div], ids=lambda function: function.__name__)
def test_every_kind_of_number_may_be_an_operand(apply: Callable[..., torch.Tensor], number: object) -> None:
    if number is True and apply is torch.sub:
        pytest.skip("torch subtracts no booleans")
    cav = InputCAV(lambda x: apply(x, number).real @ w, normalize=None)
    found, delta = cav.attribute(X, return_convergence_delta=True)
    slope = float(
        apply(torch.ones((), dtype=X.dtype), number).real - apply(torch.zeros((), dtype=X.dtype), number).real
    )
    torch.testing.assert_close(found, slope * X * w)
    assert delta.abs().max() < 1e-12


# Memory -------------------------------------------------------------------------------------------------------------


def test_nothing_outlives_the_pass() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        z = x @ W
        e = torch.exp(z - z.amax(-1, keepdim=True))
        s = e.sum(-1, keepdim=True)
        kept.extend(map(weakref.ref, (z, e, s)))
        return (e / s) @ w

    gc.collect()
    gc.disable()
    try:
        InputCAV(network).attribute(X)
        assert all(reference() is None for reference in kept)  # no cycle waits for the garbage collector
    finally:
        gc.enable()
