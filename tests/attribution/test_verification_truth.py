"""``verify`` says ok where a map is right, and not ok where it is wrong. The truth comes from plain torch in float64.

In a piecewise linear model without constants, contributions are the input times the derivative, and differences of the
score tell the derivative. In attention the weights of a row are computed from the allowed positions alone, so that no
mask takes part.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from captum_cav import InputCAV, presets, rules, verify
from captum_cav.errors import ModelError, UnsupportedOperationError
from tests.support.networks import fixed

Model = Callable[[torch.Tensor], torch.Tensor]
LOWEST = torch.finfo(torch.float64).min
FILLS = pytest.mark.parametrize("fill", [-math.inf, LOWEST], ids=["-inf", "lowest"])
#: AttnLRP with exact products. The preset's epsilon would blur the comparison.
HALVES: Any = {
    torch.softmax: rules.AttentionRule("all"),
    F.scaled_dot_product_attention: rules.AttentionRule("all"),
    torch.matmul: rules.ProductRule("halves"),
}
CARRIERS = pytest.mark.parametrize("mapping", [None, HALVES], ids=["values carry", "all carry"])


def map_and_delta(model: Model, x: torch.Tensor, mapping: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    found, delta = InputCAV(model, normalize=None, rules=mapping).attribute(x, return_convergence_delta=True)
    return found, delta


# Masks of infinity ----------------------------------------------------------------------------------------------------

Q, K, V = (fixed(4, 4, seed=seed) / 2 for seed in (1, 2, 3))
X = fixed(2, 3, 4, seed=4)
CAUSAL = torch.ones(3, 3, dtype=torch.bool).tril()
#: In the second sample the first word is padding, so its row attends to nothing.
PADDED = torch.stack([CAUSAL, CAUSAL & torch.tensor([False, True, True])])


def add(scores: torch.Tensor, forbidden: torch.Tensor, fill: float) -> torch.Tensor:
    return scores + torch.zeros(forbidden.shape, dtype=scores.dtype).masked_fill(forbidden, fill)


def setitem(scores: torch.Tensor, forbidden: torch.Tensor, fill: float) -> torch.Tensor:
    scores[forbidden.expand_as(scores)] = fill
    return scores


def before_the_scale(scores: torch.Tensor, forbidden: torch.Tensor, fill: float) -> torch.Tensor:
    return add(scores * 2, forbidden, fill) / 2


WAYS: dict[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "masked_fill": lambda scores, forbidden, fill: scores.masked_fill(forbidden, fill),
    "masked_fill_": lambda scores, forbidden, fill: scores.masked_fill_(forbidden, fill),
    "where with a number": lambda scores, forbidden, fill: torch.where(forbidden, fill, scores),
    "where with a tensor": lambda scores, forbidden, fill: torch.where(
        forbidden, torch.full((), fill, dtype=scores.dtype), scores
    ),
    "add": add,
    "setitem": setitem,
    "before the scale": before_the_scale,
}


def attention(way: str, allowed: torch.Tensor, fill: float) -> Model:
    def model(x: torch.Tensor) -> torch.Tensor:
        scores = WAYS[way]((x @ Q) @ (x @ K).transpose(-2, -1) / 2, ~allowed, fill)
        weights = scores.softmax(-1)
        if fill == -math.inf and not allowed.any(-1).all():
            weights = weights.nan_to_num(0.0)
        return (weights @ (x @ V)).sum((1, 2))

    return model


def true_map(allowed: torch.Tensor, is_empty_row_even: bool, halves: bool) -> torch.Tensor:
    """The map of :func:`attention`, row by row and over the allowed positions only.

    Args:
        allowed: shape (3, 3) or (2, 3, 3).
        is_empty_row_even: whether a row without an allowed position has equal weights, else its weights are 0.
        halves: whether all factors carry contributions, each factor of a product one half. Else only the values do.
    """
    x = X.clone().requires_grad_()

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.detach() + a.detach() @ b) / 2

    total = torch.zeros((), dtype=torch.float64)
    for sample, rows in zip(x, allowed.expand(2, 3, 3), strict=True):
        queries, keys, values = sample @ Q, sample @ K, sample @ V
        for row, columns in enumerate(rows):
            chosen = keys[columns]
            if not len(chosen):
                weights = torch.full((3,), is_empty_row_even / 3, dtype=torch.float64)
                total = total + (weights @ values).sum() / (1 + halves)
            elif halves:
                weights = (product(queries[row], chosen.T) / 2).softmax(-1)
                total = total + product(weights, values[columns]).sum()
            else:
                weights = (queries[row] @ chosen.T / 2).softmax(-1).detach()
                total = total + (weights @ values[columns]).sum()
    (coefficients,) = torch.autograd.grad(total, x)
    return X * coefficients


def check_masked(model: Model, expected: torch.Tensor, mapping: Any) -> None:
    found, delta = map_and_delta(model, X, mapping)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    scores = model(X)
    torch.testing.assert_close(delta, scores - expected.sum((1, 2)), rtol=1e-9, atol=1e-12)
    verified = verify(model, X, rules=mapping)
    assert verified.ok, verified
    unit = scores.abs().sum()
    assert verified.delta == pytest.approx(float(delta.sum() / unit), rel=1e-9, abs=1e-12)
    assert verified.lost == pytest.approx(0.0, abs=1e-12)
    by_rules = sum(leak.residual for leak in verified.by_rules)
    assert by_rules == pytest.approx(verified.delta if mapping else 0.0, rel=1e-6, abs=1e-12)
    assert bool(verified.by_rules) == (mapping is not None)


@pytest.mark.parametrize("way", WAYS)
@FILLS
@CARRIERS
def test_a_mask_that_is_written_out(way: str, fill: float, mapping: Any) -> None:
    check_masked(attention(way, CAUSAL, fill), true_map(CAUSAL, False, mapping is HALVES), mapping)


@pytest.mark.parametrize("way", WAYS)
@FILLS
def test_the_preset_that_lets_all_carry_has_finite_deltas(way: str, fill: float) -> None:
    for allowed in (CAUSAL, PADDED):
        model = attention(way, allowed, fill)
        found, delta = map_and_delta(model, X, "attnlrp")
        torch.testing.assert_close(found, true_map(allowed, fill == LOWEST, True), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(delta, map_and_delta(model, X, HALVES)[1], rtol=1e-3, atol=1e-5)
        assert verify(model, X, rules="attnlrp").ok


@pytest.mark.parametrize("way", WAYS)
@FILLS
def test_a_row_in_which_all_positions_are_masked(way: str, fill: float) -> None:
    """Its weights depend on no score: 0 after nan_to_num, or all equal beside the lowest number."""
    model = attention(way, PADDED, fill)
    check_masked(model, true_map(PADDED, fill == LOWEST, False), None)


@pytest.mark.parametrize("way", WAYS)
@FILLS
def test_a_masked_row_where_all_carry(way: str, fill: float) -> None:
    """The constant weights of such a row are one factor of a product, and half of its contribution ends there."""
    model = attention(way, PADDED, fill)
    check_masked(model, true_map(PADDED, fill == LOWEST, True), HALVES)


@pytest.mark.parametrize("is_boolean", [True, False])
@CARRIERS
def test_fused_attention_is_as_attention_written_out(is_boolean: bool, mapping: Any) -> None:
    mask = PADDED if is_boolean else torch.zeros(2, 3, 3, dtype=torch.float64).masked_fill(~PADDED, -math.inf)

    def fused(x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x @ Q, x @ K, x @ V, attn_mask=mask).sum((1, 2))

    found, delta = map_and_delta(fused, X, mapping)
    expected, expected_delta = map_and_delta(attention("add", PADDED, -math.inf), X, mapping)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(delta, expected_delta, rtol=1e-9, atol=1e-12)
    verified = verify(fused, X, rules=mapping)
    assert verified.ok, verified
    assert [leak.operation for leak in verified.by_rules] == ["scaled_dot_product_attention"] * (mapping is not None)
    assert verified.lost == pytest.approx(0.0, abs=1e-12)


@FILLS
@CARRIERS
def test_a_softmax_in_lower_precision(fill: float, mapping: Any) -> None:
    """The lowest number of float64 is infinite in float32. So is what the delta's derivative brings to the mask."""

    def model(x: torch.Tensor) -> torch.Tensor:
        scores = add((x @ Q) @ (x @ K).transpose(-2, -1) / 2, ~CAUSAL, fill)
        return (scores.softmax(-1, dtype=torch.float32).to(x.dtype) @ (x @ V)).sum((1, 2))

    found, delta = map_and_delta(model, X, mapping)
    expected, expected_delta = map_and_delta(attention("add", CAUSAL, fill), X, mapping)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(delta, expected_delta, rtol=1e-5, atol=1e-6)
    verified = verify(model, X, rules=mapping)
    assert verified.ok, verified
    assert verified.tolerance == pytest.approx(torch.finfo(torch.float32).eps ** 0.5)
    assert verify(attention("add", CAUSAL, fill), X).tolerance == pytest.approx(torch.finfo(torch.float64).eps ** 0.5)


MASK = torch.tensor([True, False, False, True])


@pytest.mark.parametrize(
    "behind",
    [
        lambda masked: masked.max(1).values,
        lambda masked: masked.topk(2, 1).values.sum(1),
        lambda masked: masked.logsumexp(1),
        lambda masked: masked.logcumsumexp(1)[:, -1],
        lambda masked: masked.log_softmax(1)[:, 1],
        lambda masked: torch.logaddexp(masked[:, 0], masked[:, 1]),
        lambda masked: masked.exp().sum(1),
        lambda masked: masked.tanh().sum(1),
        lambda masked: F.softplus(masked).sum(1),
        lambda masked: masked.relu().sum(1),
        lambda masked: masked.clamp(min=-1.0).sum(1),
        lambda masked: masked.nan_to_num(neginf=-2.0).sum(1),
        lambda masked: (masked.softmax(1) * torch.arange(4)).sum(1),
    ],
)
def test_contributions_and_constants_of_what_follows_a_mask(behind: Model) -> None:
    """The map is as if the masked positions were no inputs at all, and all that they give is a constant."""
    x = fixed(3, 4)

    def masked(x: torch.Tensor) -> torch.Tensor:
        return behind((x * 2).masked_fill(MASK, -math.inf))

    found, delta = map_and_delta(masked, x)
    assert bool((found[:, MASK] == 0).all())
    assert delta.abs().max() < 1e-12
    verified = verify(masked, x)
    assert verified.ok, verified


def test_the_allowed_positions_of_a_masked_logsumexp_share_as_without_a_mask() -> None:
    x = fixed(3, 4)
    found, _ = map_and_delta(lambda x: x.masked_fill(MASK, -math.inf).logsumexp(1), x)
    expected, _ = map_and_delta(lambda x: x.logsumexp(1), x[:, ~MASK])
    torch.testing.assert_close(found[:, ~MASK], expected)


@pytest.mark.parametrize(
    "model",
    [
        lambda x: (x + MASK).sum(1),
        lambda x: (MASK + x).sum(1),
        lambda x: (x - torch.arange(4)).sum(1),
        lambda x: (torch.arange(4) - x).sum(1),
        lambda x: torch.where(MASK, x, torch.arange(4)).sum(1),
        lambda x: torch.cat([x, torch.arange(4).expand(3, 4)], 1).sum(1),
    ],
)
def test_integers_and_booleans_that_are_added_are_constants(model: Model) -> None:
    x = fixed(3, 4)
    found, delta = map_and_delta(model, x)
    torch.testing.assert_close(found, times_derivative(model, x), rtol=1e-6, atol=1e-8)
    assert delta.abs().max() < 1e-12
    assert verify(model, x).ok


def test_infinity_in_an_output_that_is_not_explained() -> None:
    verified = verify(lambda x: x.masked_fill(MASK, -math.inf), fixed(3, 4), 1)
    assert verified.ok, verified
    assert verified.value == 0.0


def test_a_score_that_is_not_finite_is_refused_as_by_an_attribution() -> None:
    model = lambda x: x.masked_fill(MASK, math.nan)  # noqa: E731
    for call in (lambda: verify(model, fixed(3, 4), 0), lambda: InputCAV(model).attribute(fixed(3, 4), 0)):
        with pytest.raises(ModelError, match=r"the score is not finite in samples 0, 1, 2: NaN or infinity"):
            call()


# Leaks that a rule intends --------------------------------------------------------------------------------------------


def test_the_leak_of_a_softmax_is_told_but_is_no_fault() -> None:
    model = attention("masked_fill", CAUSAL, -math.inf)
    verified = verify(model, X, rules=HALVES)
    (leak,) = verified.by_rules
    # By hand: what is missing at the inputs is what the softmax does not pass on.
    missing = float((model(X) - true_map(CAUSAL, False, True).sum((1, 2))).sum() / model(X).abs().sum())
    assert leak.residual == pytest.approx(missing, rel=1e-9)
    assert (leak.operation, leak.rule) == ("softmax", "AttentionRule(carry='all')")
    assert verified.ok
    assert not verified.leaks
    line = (
        f"  softmax in no module (AttentionRule(carry='all')) leaves {missing:+.1e} of the score, as this rule intends"
    )
    assert str(verified).splitlines()[1:] == [line]
    assert str(verified).startswith("ok: ")


def test_another_leak_beside_it_is_a_fault() -> None:
    model = lambda x: attention("masked_fill", CAUSAL, -math.inf)(F.silu(x))  # noqa: E731
    assert verify(model, X, rules="attnlrp").ok
    preset = presets.attnlrp() | {F.silu: rules.GradientRule()}
    verified = verify(model, X, rules=preset)
    assert [leak.operation for leak in verified.leaks] == ["silu"]
    assert [leak.operation for leak in verified.by_rules] == ["softmax"]
    assert not verified.ok


def test_a_users_rule_can_say_that_it_does_not_conserve() -> None:
    class Halved(rules.Rule):
        operations = frozenset({"tanh"})

        def __call__(self, operation: rules.Operation, /) -> Any:
            output = operation.by_default()
            return output.detach() + (output - output.detach()) / 2

    class IntendsTo(Halved):
        is_conserving = False

    model = lambda x: x.tanh().sum(1)  # noqa: E731
    for rule, ok in ((Halved(), False), (IntendsTo(), True), (rules.AtInput(IntendsTo()), True)):
        verified = verify(model, fixed(2, 3).abs(), rules={torch.tanh: rule})
        (leak,) = verified.by_rules if ok else verified.leaks
        assert leak.residual == pytest.approx(0.5)
        assert verified.ok is ok
        assert verified.lost == pytest.approx(0.0 if ok else 0.5)


# Writes that autograd does not record ---------------------------------------------------------------------------------

W1, W2 = fixed(5, 3, seed=6), fixed(2, 5, seed=7)


def written(write: Callable[[torch.Tensor], Any], *, behind: bool = False, view: bool = False) -> Model:
    """A model without constants that writes into its hidden layer, before or behind the last use of that layer."""

    def model(x: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(x, W1)
        taken = hidden.view(-1, 5, 1)
        if not behind:
            write(hidden)
        output = F.linear(taken[..., 0] if view else hidden, W2)
        if behind:
            write(hidden)
        return output[:, 0]

    return model


def under_no_grad(hidden: torch.Tensor) -> None:
    with torch.no_grad():
        hidden.detach().mul_(2)


def zero_with_numpy(hidden: torch.Tensor) -> None:
    hidden.detach().numpy()[:, 0] = 0


def out_into_data(hidden: torch.Tensor) -> None:
    torch.mul(hidden.data, 2, out=hidden.data)


def own_write_and_foreign_write(hidden: torch.Tensor) -> None:
    hidden.detach()[:, 1].mul_(2)
    hidden[:, 0].mul_(3)


FOREIGN: dict[str, Model] = {
    "detach": written(lambda hidden: hidden.detach().mul_(2)),
    "data": written(lambda hidden: hidden.data[:, 1:].zero_()),
    "setitem of data": written(lambda hidden: hidden.data.__setitem__((slice(None), 0), 0.0)),
    "under no_grad": written(under_no_grad),
    "NumPy": written(zero_with_numpy),
    "out": written(out_into_data),
    "a view": written(lambda hidden: hidden.detach().mul_(2), view=True),
    "beside a write that is recorded": written(own_write_and_foreign_write),
}


def times_derivative(model: Model, x: torch.Tensor) -> torch.Tensor:
    """Input times derivative by central differences: the contributions, if the model is linear near ``x``."""
    step = 1e-4
    columns = []
    for place in range(x.shape[1]):
        shift = torch.zeros_like(x)
        shift[:, place] = step
        columns.append((model(x + shift) - model(x - shift)) / (2 * step))
    return x * torch.stack(columns, 1).detach()


@pytest.mark.parametrize("way", FOREIGN)
def test_a_write_that_autograd_does_not_record_is_found(way: str) -> None:
    x = fixed(2, 3)
    found, delta = map_and_delta(FOREIGN[way], x)
    assert (found - times_derivative(FOREIGN[way], x)).abs().max() > 0.01, "the map is right after all"
    verified = verify(FOREIGN[way], x)
    assert not verified.ok
    (one,) = verified.overwritten
    assert (one.module, one.operation) == ("", "linear")
    assert one.residual == pytest.approx(float(delta.sum() / FOREIGN[way](x).abs().sum()), rel=1e-9)
    assert (
        "an input of linear in no module was written to through detach(), .data or NumPy. Autograd does not record "
        f"that, which leaves {one.residual:+.1e} of the score; write out of place, as h = 2 * h" in str(verified)
    )


RECORDED: dict[str, Model] = {
    "in place": written(lambda hidden: hidden.mul_(2)),
    "a view": written(lambda hidden: hidden[:, 1:].mul_(2), view=True),
    "setitem": written(lambda hidden: hidden.__setitem__((slice(None), 0), 0.0)),
    "transposed": written(lambda hidden: hidden.T.mul_(2)),
    "into a copy": written(lambda hidden: hidden.detach().clone().mul_(2)),
    "NumPy into a copy": written(lambda hidden: hidden.detach().numpy().copy().fill(0)),
    "behind the last use": written(lambda hidden: hidden.detach().mul_(2), behind=True),
}


@pytest.mark.parametrize("way", RECORDED)
def test_a_write_that_changes_no_map_is_no_fault(way: str) -> None:
    x = fixed(2, 3)
    found, delta = map_and_delta(RECORDED[way], x)
    torch.testing.assert_close(found, times_derivative(RECORDED[way], x), rtol=1e-6, atol=1e-8)
    assert delta.abs().max() < 1e-12
    verified = verify(RECORDED[way], x)
    assert verified.ok, verified


def test_what_the_message_advises_works() -> None:
    def repaired(x: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(x, W1)
        hidden = 2 * hidden
        return F.linear(hidden, W2)[:, 0]

    x = fixed(2, 3)
    torch.testing.assert_close(repaired(x), FOREIGN["detach"](x))
    torch.testing.assert_close(map_and_delta(repaired, x)[0], times_derivative(repaired, x), rtol=1e-6, atol=1e-8)
    assert verify(repaired, x).ok


def test_a_write_into_what_a_rule_has_saved_is_found() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(x, W1)
        output = F.linear(hidden.tanh(), W2)[:, 0]
        hidden.data.mul_(3)
        return output

    verified = verify(model, fixed(2, 3))
    assert [leak.operation for leak in verified.leaks] == ["tanh"]
    assert not verified.ok


def test_a_write_into_the_output_of_the_model_is_found() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        output = F.linear(x, W1)
        output.detach().mul_(4)
        return output

    verified = verify(model, fixed(2, 3), 1)
    (one,) = verified.overwritten
    assert one.residual == pytest.approx(0.75 * verified.score / float(model(fixed(2, 3))[:, 1].abs().sum()), rel=1e-9)
    assert "the output of the model was written to through detach(), .data or NumPy" in str(verified)
    assert not verified.ok


def test_a_write_into_the_input_is_found_although_the_sum_is_right() -> None:
    """The map counts the number that was added as a contribution of the input."""

    def model(x: torch.Tensor) -> torch.Tensor:
        x.detach().add_(1)
        return F.linear(x, W1)

    x = fixed(2, 3)
    found, delta = InputCAV(model, normalize=None).attribute(x, 1, return_convergence_delta=True)
    assert delta.abs().max() < 1e-12
    assert (found - x * W1[1]).abs().max() > 0.1
    verified = verify(model, x, 1)
    assert [one.operation for one in verified.overwritten] == ["linear"]
    assert not verified.ok


@pytest.mark.parametrize(
    "write",
    [
        lambda hidden: hidden.t_(),
        lambda hidden: hidden[:, :2].t_(),
        lambda hidden: hidden.unsqueeze_(1),
        lambda hidden: hidden.transpose_(0, 1).mul_(3),
        lambda hidden: hidden.unsqueeze_(0).squeeze_(0).mul_(3),
    ],
)
def test_a_view_in_place_is_audited_as_it_runs(write: Callable[[torch.Tensor], Any]) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(x, W1)
        write(hidden)
        return hidden.flatten()[:2].relu() * torch.tensor([2.0, 3.0])

    x = fixed(2, 3)
    leaf = x.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(model(leaf).sum(), leaf)
    found, delta = map_and_delta(model, x)
    torch.testing.assert_close(found, x * derivative, rtol=1e-9, atol=1e-12)
    assert delta.abs().max() < 1e-12
    verified = verify(model, x)
    assert verified.ok, verified
    assert verified.value == 0.0


def test_new_data_is_found() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(x, W1)
        hidden.data = hidden * 2
        return F.linear(hidden, W2)[:, 0]

    verified = verify(model, fixed(2, 3))
    assert [leak.operation for leak in verified.leaks] == ["__set__"]
    assert not verified.ok


def test_a_detached_tensor_is_a_constant_also_if_it_is_detached_in_place() -> None:
    def model(x: torch.Tensor, in_place: bool) -> torch.Tensor:
        hidden = F.linear(x, W1)
        hidden = hidden.detach_() if in_place else hidden.detach()
        return (F.linear(hidden, W2) + x[:, :2])[:, 0]

    x = fixed(2, 3)
    for in_place in (True, False):
        one = functools.partial(model, in_place=in_place)
        found, delta = map_and_delta(one, x)
        assert torch.equal(found[:, 0], x[:, 0])
        assert not found[:, 1:].any()
        assert delta.abs().max() < 1e-12
        assert verify(one, x).ok


# What autograd does not see -------------------------------------------------------------------------------------------


def stabilised(x: torch.Tensor) -> torch.Tensor:
    hidden = F.linear(x, W1)
    with torch.no_grad():
        largest = hidden.amax(1, keepdim=True)
    return F.linear(hidden - largest, W2)[:, 0]


def weighed(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        weights = F.linear(F.linear(x, W1).relu(), W2).softmax(1)
    return (weights * F.linear(F.linear(x, W1), W2)).sum(1)


def inferred(x: torch.Tensor) -> torch.Tensor:
    hidden = F.linear(x, W1)
    with torch.inference_mode():
        largest = hidden.amax(1, keepdim=True)
    return F.linear(hidden - largest, W2)[:, 0]


@torch.no_grad()
def largest_of(hidden: torch.Tensor) -> torch.Tensor:
    return hidden.amax(1, keepdim=True)


def decorated(x: torch.Tensor) -> torch.Tensor:
    hidden = F.linear(x, W1)
    return F.linear(hidden - largest_of(hidden), W2)[:, 0]


def sorted_there(x: torch.Tensor) -> torch.Tensor:
    hidden = F.linear(x, W1)
    with torch.set_grad_enabled(False):
        order = hidden.argsort(1)
    return F.linear(hidden.gather(1, order), W2)[:, 0]


def on_the_host(x: torch.Tensor) -> torch.Tensor:
    hidden = F.linear(x, W1)
    return F.linear(hidden - torch.from_numpy(hidden.detach().numpy().max(1, keepdims=True)), W2)[:, 0]


@pytest.mark.parametrize("model", [stabilised, weighed, inferred, decorated, sorted_there, on_the_host])
def test_what_is_computed_under_no_grad_is_a_constant(model: Model) -> None:
    x = fixed(2, 3)
    leaf = x.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(model(leaf).sum(), leaf)
    found, delta = map_and_delta(model, x)
    torch.testing.assert_close(found, x * derivative, rtol=1e-9, atol=1e-12)
    assert delta.abs().max() < 1e-12
    verified = verify(model, x)
    assert verified.ok, verified
    assert abs(verified.delta) < 1e-12


class Doubled(torch.autograd.Function):
    """Its backward pass is wrong on purpose: contributions come from the operations of its forward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=0) * 2

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return 100 * gradients[0]


TAKEN_BEFORE = Doubled.apply


@pytest.mark.parametrize(
    "unseen",
    [lambda hidden: TAKEN_BEFORE(hidden), lambda hidden: checkpoint(torch.relu, hidden, use_reentrant=True)],
    ids=["apply taken beforehand", "reentrant checkpoint"],
)
def test_what_cannot_be_seen_is_refused_as_by_an_attribution(unseen: Model) -> None:
    model = lambda x: F.linear(unseen(F.linear(x, W1)), W2)[:, 0]  # noqa: E731
    x = fixed(2, 3)
    messages = []
    for call in (lambda: verify(model, x), lambda: InputCAV(model).attribute(x)):
        with pytest.raises(UnsupportedOperationError, match="which captum_cav could not see") as raised:
            call()
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    "seen",
    [lambda hidden: Doubled.apply(hidden), lambda hidden: checkpoint(torch.relu, hidden, use_reentrant=False)],
    ids=["apply", "checkpoint"],
)
def test_what_can_be_seen_is_right(seen: Model) -> None:
    model = lambda x: F.linear(seen(F.linear(x, W1)), W2)[:, 0]  # noqa: E731
    x = fixed(2, 3)
    torch.testing.assert_close(map_and_delta(model, x)[0], times_derivative(model, x), rtol=1e-6, atol=1e-8)
    assert verify(model, x).ok


# The sum of all -------------------------------------------------------------------------------------------------------


class Bent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.tanh()


def test_a_wrong_rule_for_a_whole_module_is_found_by_the_sum() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), Bent(), nn.Linear(4, 2)).double()
    x = fixed(2, 3)
    right = verify(net, x, 1, rules={Bent: rules.PassThroughRule()})
    assert right.ok, right
    assert right.as_one == ("1",)

    def derivative(operation: rules.Operation) -> Any:
        return operation.value()

    wrong = verify(net, x, 1, rules={Bent: derivative})
    assert not wrong.leaks
    assert not wrong.adds_up
    assert not wrong.ok
    _, delta = InputCAV(net, normalize=None, rules={Bent: derivative}).attribute(x, 1, return_convergence_delta=True)
    missing = float(delta.sum() / net(x)[:, 1].detach().abs().sum())
    assert wrong.lost == pytest.approx(missing, rel=1e-9)
    assert (
        f"{missing:+.1e} of the score is lost. No compared operation leaves that, but nothing inside '1' was compared"
        in str(wrong)
    )


@pytest.mark.parametrize("model", [lambda x: (x - x).sum(1), lambda x: x.sum(1) - x.sum(1), lambda x: 0 * x[:, 0]])
def test_a_score_of_zero(model: Model) -> None:
    x = fixed(2, 3)
    assert not map_and_delta(model, x)[0].any()
    verified = verify(model, x)
    assert verified.ok, verified
    assert (verified.score, verified.delta, verified.cancellation) == (0.0, 0.0, 0.0)


def test_a_fault_at_a_score_of_zero_is_in_units_of_the_score() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x.square().sum(1) - 14

    x = torch.tensor([[1.0, 2.0, 3.0]])
    assert verify(model, x).ok
    verified = verify(model, x, rules={torch.square: rules.GradientRule()})
    assert verified.score == 0
    (leak,) = verified.leaks
    assert leak.residual == pytest.approx(-14.0)
    assert verified.delta == pytest.approx(-14.0)
    assert not verified.ok


def test_a_function_that_is_completed_inside_another_one_is_verified() -> None:
    """The logarithm of the loss completes a log-sigmoid, whose sigmoid is outside of the loss."""
    x, target = torch.randn(2, 4, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64)
    verified = verify(lambda x: F.binary_cross_entropy(torch.sigmoid(x), target, reduction="none").sum(1), x)
    assert verified.ok, verified


@pytest.mark.slow
def test_every_operation_of_the_coverage_suite_is_verified() -> None:
    """There each map is compared with a map in plain torch, and all are right."""
    from benchmarks.coverage import operations

    for name, (function, _) in operations.CASES.items():
        verified = verify(lambda x, function=function: operations.score(function(x)), operations.X)
        assert verified.ok, f"{name}: {verified}"
