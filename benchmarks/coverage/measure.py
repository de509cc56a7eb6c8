"""One case of the coverage benchmark: explain, and compare with what is known."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from benchmarks.coverage import oracle, rivals
from benchmarks.coverage.problem import Problem
from captum_cav import InputCAV
from captum_cav.errors import CAVError

_TOLERANCES = {"float64": 1e-6, "float32": 1e-3}


@dataclass
class Row:
    """What came out for one network.

    Attributes:
        suite: where it comes from.
        name: its name there.
        dtype: of its parameters.
        parameters: how many it has.
        delta: what contributions and constants leave of the score, over the score.
        map: distance from the oracle's map, over that map's norm; None where the oracle has none.
        oracle: why it has none.
        value: largest difference of the output to that without captum_cav, over the largest output.
        mass: sum of the absolute ratios of the inputs; 0 would mean a map of nothing.
        seconds: of one attribution.
        time: seconds over those of one forward pass and gradient.
        error: what was raised, if anything.
        against: for each other library, distance of its map from the oracle's, or what it raised.
    """

    suite: str
    name: str
    dtype: str = "float64"
    parameters: int = 0
    delta: float | None = None
    map: float | None = None
    oracle: str = ""
    value: float | None = None
    mass: float | None = None
    seconds: float | None = None
    time: float | None = None
    error: str = ""
    against: dict[str, float | str] = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        """Whether all that is known of it is as it must be."""
        found = (self.delta, self.value, self.map if self.map is not None else 0.0)
        tolerance = _TOLERANCES[self.dtype]
        return not self.error and bool(self.mass) and all(part is not None and part < tolerance for part in found)


def measure(suite: str, name: str, problem: Problem, against: list[str], with_oracle: bool = True) -> Row:
    """Explain one input and compare."""
    score, model, x, target = problem
    size = sum(parameter.numel() for parameter in model.parameters())
    row = Row(suite, name, str(x.dtype).removeprefix("torch."), size)
    start = time.perf_counter()
    leaf = x.clone().requires_grad_()
    expected = score(leaf)
    torch.autograd.grad(expected[:, target].sum(), leaf)
    plain = time.perf_counter() - start
    expected = expected.detach()

    seen: list[torch.Tensor] = []

    def watched(inputs: torch.Tensor) -> torch.Tensor:
        scores = score(inputs)
        seen.append(scores.detach().clone())
        return scores

    try:
        start = time.perf_counter()
        InputCAV(score).attribute(x, target)
        row.seconds = time.perf_counter() - start
        row.time = row.seconds / plain
        ratios, delta = InputCAV(watched).attribute(x, target, return_convergence_delta=True)
    except CAVError as error:
        row.error = f"{type(error).__name__}: {error}"
        return row
    row.delta = float(delta.abs().max())
    row.mass = float(ratios.abs().sum())
    row.value = float((seen[0] - expected).abs().max() / expected.abs().max())
    if row.dtype != "float64" or not with_oracle:
        row.oracle = "left out" if row.dtype == "float64" else "left out, in float32"
        return row
    try:
        exact = oracle.exact_map(score, x, target)
    except Exception as error:  # noqa: BLE001 - a model that cannot be traced has no oracle; the table says why
        row.oracle = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    else:
        row.map = _distance(ratios, exact)
        row.against = {rival: _of_rival(rival, problem, exact) for rival in against}
    return row


def _of_rival(rival: str, problem: Problem, exact: torch.Tensor) -> float | str:
    try:
        return _distance(rivals.MAPS[rival](problem), exact)
    except Exception as error:  # noqa: BLE001 - whatever they raise is their result
        return f"{type(error).__name__}: {error}".splitlines()[0][:120]


def _distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def shown(row: Row) -> str:
    """A line of the table."""

    def number(value: float | None, digits: str = ".0e") -> str:
        return "-" if value is None else format(value, digits)

    against = "  ".join(f"{name} {v if isinstance(v, str) else number(v)}" for name, v in row.against.items())
    return (
        f"{'ok  ' if row.is_right else 'FAIL'} {row.name:48} delta {number(row.delta):>7}  map {number(row.map):>7}  "
        f"value {number(row.value):>7}  {number(row.seconds, '.1f'):>6} s  {number(row.time, '.1f'):>5} x  "
        f"{against}{row.error}{row.oracle and 'no oracle: ' + row.oracle}"
    )
