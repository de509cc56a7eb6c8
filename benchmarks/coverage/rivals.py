"""The same ratios by other libraries, with the rules of theirs that mean the same as the paper's."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

from benchmarks.coverage.problem import Problem


def _module(problem: Problem) -> torch.nn.Module:
    if problem.score is not problem.model:
        # Their rules hang on modules, which a function around the model does not hide.
        class Scores(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = problem.model

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return problem.score(x)

        return Scores().eval()
    return problem.model


def _over_score(problem: Problem, relevance: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        scores = problem.score(problem.inputs)[:, problem.target]
    return relevance.detach() / scores.reshape(-1, *[1] * (relevance.dim() - 1))


def captum(problem: Problem) -> torch.Tensor:
    """Captum's LRP with its epsilon rule, its default."""
    lrp = importlib.import_module("captum.attr").LRP(_module(problem))
    return _over_score(problem, lrp.attribute(problem.inputs.clone(), target=problem.target))


def zennit(problem: Problem) -> torch.Tensor:
    """Zennit with epsilon for linear operations, pass-through for activations and its rule for norms."""
    composites, rules, types = (importlib.import_module(f"zennit.{name}") for name in ("composites", "rules", "types"))
    attribution = importlib.import_module("zennit.attribution")
    layer_map = [
        (types.Activation, rules.Pass()),
        (types.Linear, rules.Epsilon(epsilon=1e-12)),
        (types.AvgPool, rules.Norm()),
    ]
    model, x = _module(problem), problem.inputs
    with attribution.Gradient(model, composites.LayerMapComposite(layer_map)) as attributor:
        scores = problem.score(x).detach()
        seed = torch.zeros_like(scores)
        seed[:, problem.target] = scores[:, problem.target]
        _, relevance = attributor(x.clone(), seed)
    return _over_score(problem, relevance)


def input_x_gradient(problem: Problem) -> torch.Tensor:
    """Captum's input x gradient: right where all is piecewise linear."""
    method = importlib.import_module("captum.attr").InputXGradient(problem.score)
    return _over_score(problem, method.attribute(problem.inputs.clone(), target=problem.target))


MAPS: dict[str, Callable[[Problem], torch.Tensor]] = {
    "captum": captum,
    "zennit": zennit,
    "input_x_gradient": input_x_gradient,
}
