"""Where the backward passes of several scores part: up to there, one pass serves them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from captum_cav.attribution import common_pass
from captum_cav.attribution.common_pass import common_start
from captum_cav.attribution.options import check_options
from captum_cav.attribution.several import contributions_by_score
from captum_cav.operations import TABLE
from captum_cav.propagation.forward import Forward, Request, run
from captum_cav.propagation.hooks import Site
from tests.support.tensors import assert_same

ROWS, WIDTH = 12, 5


class Mixing(nn.Module):
    """Rows that a matrix mixes, and behind it an MLP and a head for each row."""

    def __init__(self, mixing: torch.Tensor, late: torch.Tensor | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.mlp = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.head = nn.Linear(WIDTH, 3)
        self.mixing, self.late = mixing, late
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        mixed = first + self.mixing @ first.tanh()
        behind = mixed + self.mlp(mixed).relu()
        if self.late is not None:
            behind = self.late @ behind
        output: torch.Tensor = self.head(behind)
        return output


def passed(net: nn.Module, rules: Any = None) -> Forward:
    x = torch.randn(1, ROWS, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    request = Request(table=TABLE, rules=check_options(net, rules).rules)
    return run(net, (x,), (), [Site(net.first, False)], request)  # type: ignore[arg-type]


def scores_of(forward: Forward) -> torch.Tensor:
    chosen: torch.Tensor = forward.output[0, 2:, 1]
    return chosen


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


#: The node of the sum of both branches, in front of the MLP and behind the mixing.
SUM = "AddBackward0"
EYE = torch.eye(ROWS, dtype=torch.float64)
CAUSAL = random(ROWS, ROWS).tril()
#: What mixes rows behind the MLP: the pass may not be shared in front of it.
LATE: dict[str, torch.Tensor] = {
    "all rows": CAUSAL,
    "rows with equal weights": torch.full((ROWS, ROWS), 1 / ROWS, dtype=torch.float64),
    "every second row": EYE + torch.diag(torch.ones(ROWS - 2, dtype=torch.float64), -2),
    "two rows": EYE + EYE[:, [7]] * EYE[[3]],
    "two rows a little": EYE + 1e-9 * EYE[:, [7]] * EYE[[3]],
}


def expected(forward: Forward, scores: torch.Tensor) -> torch.Tensor:
    (index,) = forward.calls[0][:1]
    (value,) = forward.trace.taps[index].values
    rows = []
    for number in range(len(scores)):
        ((coefficients,),) = forward.coefficients(scores[number : number + 1], torch.ones(1).double(), [index], True)
        assert coefficients is not None
        rows.append((value * coefficients)[0])
    return torch.stack(rows)


def maps(forward: Forward, scores: torch.Tensor, at_once: int = 4) -> torch.Tensor:
    index = forward.calls[0][0]
    ((found,),) = contributions_by_score(forward, scores, [index], at_once, [lambda part: part[:, 0]])
    return found


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the nodes at which separate passes began."""
    found: list[str] = []

    def noted(*args: Any) -> Any:
        start = common_start(*args)
        found.append("scores" if isinstance(start.at, torch.Tensor) else start.at.node.name())
        return start

    monkeypatch.setattr("captum_cav.attribution.several.common_start", noted)
    return found


@pytest.mark.parametrize("rules", [None, "epsilon", "gamma", "attnlrp"])
def test_rows_are_shared_up_to_where_they_mix(rules: Any, places: list[str]) -> None:
    forward = passed(Mixing(CAUSAL), rules)
    scores = scores_of(forward)
    assert_same(maps(forward, scores), expected(forward, scores))
    assert places == [SUM]
    start = common_start(forward, scores, [forward.calls[0][0]])
    assert start.coefficients.shape == (1, ROWS, WIDTH)
    assert start.owner[0, 2:, 0].tolist() == list(range(ROWS - 2))


@pytest.mark.parametrize("late", LATE)
def test_scores_that_meet_in_a_row_are_not_shared_there(late: str, places: list[str]) -> None:
    forward = passed(Mixing(CAUSAL, LATE[late]))
    scores = scores_of(forward)
    assert_same(maps(forward, scores), expected(forward, scores))
    assert places[0] not in ("scores", SUM), "the head is shared, and the MLP is not"


@pytest.mark.parametrize("choose", [lambda found: found[0, :4, 1], lambda found: found[0].mean(1), lambda x: x[0, 0]])
def test_few_scores_and_other_shapes(choose: Callable[[torch.Tensor], torch.Tensor]) -> None:
    forward = passed(Mixing(CAUSAL))
    scores = choose(forward.output)
    assert_same(maps(forward, scores, 3), expected(forward, scores))


def test_half_precision_and_constants_begin_at_the_scores() -> None:
    forward = passed(Mixing(CAUSAL))
    index = forward.calls[0][0]
    for scores in (scores_of(forward).bfloat16(), torch.ones(20)):
        assert common_start(forward, scores, [index]).at is scores


def test_all_passages_are_found() -> None:
    x = torch.ones(3, requires_grad=True)
    tap = x * 2
    left, right = tap.exp(), tap.sin()
    joined = left + right
    end = (joined.tanh() * joined.cos()).sum()
    found = common_pass._passages(end.grad_fn, {tap.grad_fn})
    assert [edge.node.name() for edge in found] == ["MulBackward0", "AddBackward0"]
    first, second = torch.ones(2, 2, requires_grad=True).exp().unbind()
    (only,) = common_pass._passages((first * second).sum().grad_fn, {first.grad_fn})
    assert only.node.name() == "MulBackward0", "a node with two outputs is no single place"
