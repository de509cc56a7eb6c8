"""What all measures have in common: their declarations, and what must hold of any of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from captum_cav import metrics
from captum_cav.errors import CAVTypeError
from captum_cav.metrics import MEASURES
from tests.metrics.networks import convolutional, maps, pictures

VOCABULARY = {"maps", "others", "masks", "scores", "model", "inputs", "target", "explain"}
# Name, range and better direction, as the table of the interface has them.
DECLARED = {
    "sparseness": (0, 1, "higher"),
    "entropy": (0, 1, "lower"),
    "completeness": (-math.inf, math.inf, None),
    "agreement": (-1, 1, None),
    "mass_accuracy": (0, 1, "higher"),
    "rank_accuracy": (0, 1, "higher"),
    "pointing_hit": (0, 1, "higher"),
    "deletion": (0, 1, "lower"),
    "insertion": (0, 1, "higher"),
    "morf_lerf": (-1, 1, "higher"),
    "single_deletion": (-1, 1, "higher"),
    "effect_agreement": (-1, 1, "higher"),
    "model_randomisation": (0, 1, "lower"),
    "random_logit": (0, 1, "lower"),
    "grid_pointing": (0, 1, "higher"),
    "focus": (0, 1, "higher"),
    "difull": (0, 1, "higher"),
}
IN_GRIDS = {"grid_pointing", "focus", "difull"}


def gradient_x_input(model: Any, inputs: torch.Tensor, target: Any) -> torch.Tensor:
    inputs = inputs.clone().requires_grad_()
    score = model(inputs)[range(len(inputs)), target].sum()
    (gradient,) = torch.autograd.grad(score, inputs)
    return (inputs * gradient).sum(1).detach()


def given(resolution: tuple[int, int] = (8, 6)) -> dict[str, Any]:
    model, inputs = convolutional(classes=5), pictures(8)
    target = [0, 1, 2, 3, 3, 2, 1, 0]
    generator = torch.Generator().manual_seed(0)
    of_model = gradient_x_input(model, inputs, target)
    return {
        "model": model,
        "inputs": inputs,
        "target": target,
        "explain": gradient_x_input,
        "maps": of_model if resolution == (8, 6) else maps(8, *resolution),
        "others": maps(8, seed=3),
        "masks": torch.rand(8, 8, 6, generator=generator) < 0.3,
        "scores": model(inputs).detach().gather(1, torch.tensor(target)[:, None])[:, 0],
    }


def call(measure: Any, arguments: Mapping[str, Any]) -> torch.Tensor:
    found: torch.Tensor = measure(**{name: arguments[name] for name in measure.needs})
    return found


def test_all_measures_are_listed_by_name_with_their_declarations() -> None:
    assert {name: (*measure.range, measure.direction) for name, measure in MEASURES.items()} == DECLARED
    for name, measure in MEASURES.items():
        assert measure is getattr(metrics, name)
        assert inspect.isfunction(measure)
        assert measure.name == name
        assert measure.needs <= VOCABULARY
    with pytest.raises(TypeError):
        MEASURES["mine"] = metrics.deletion  # type: ignore[index]


def test_needs_are_the_required_parameters() -> None:
    assert MEASURES["deletion"].needs == {"model", "inputs", "maps", "target"}
    assert MEASURES["mass_accuracy"].needs == {"maps", "masks"}
    assert MEASURES["model_randomisation"].needs == {"model", "inputs", "maps", "target", "explain"}
    assert MEASURES["grid_pointing"].needs == {"model", "inputs", "target", "explain"}
    assert MEASURES["completeness"].needs == {"maps", "scores"}


# The maps that randomisation is compared with are those of explain.
RESOLUTIONS = [
    (name, resolution)
    for name in MEASURES
    for resolution in ((8, 6), (4, 3), (3, 5))
    if resolution == (8, 6) or name not in ("model_randomisation", "random_logit")
]


@pytest.mark.parametrize(("name", "resolution"), RESOLUTIONS, ids=str)
def test_one_number_an_example_within_the_range(name: str, resolution: tuple[int, int]) -> None:
    measure, arguments = MEASURES[name], given(resolution)
    before = {key: value.clone() for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    found = call(measure, arguments)
    assert found.shape == (8,)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    low, high = measure.range
    assert ((found >= low) & (found <= high)).all()
    # Gradients never leave the cell.
    assert len(found.unique()) > 1 or name == "difull"
    assert all(torch.equal(arguments[key], value) for key, value in before.items())


# In grids examples meet each other, and each has a random class of its own.
@pytest.mark.parametrize("name", sorted(MEASURES.keys() - IN_GRIDS - {"random_logit"}))
def test_a_batch_is_its_examples_one_by_one(name: str) -> None:
    measure, arguments = MEASURES[name], given()
    singles = []
    for i in range(8):
        one = {
            key: value[i : i + 1] if isinstance(value, torch.Tensor | list) else value
            for key, value in arguments.items()
        }
        singles.append(call(measure, one))
    torch.testing.assert_close(call(measure, arguments), torch.cat(singles), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in MEASURES if name not in IN_GRIDS])
def test_the_arguments_precision_and_graph_do_not_matter(name: str) -> None:
    measure, arguments = MEASURES[name], given()
    if "model" in measure.needs:
        # Perturbed inputs keep the model's precision.
        single = arguments | {"maps": arguments["maps"].clone().requires_grad_()}
    else:
        single = arguments | {key: arguments[key].float().requires_grad_() for key in ("maps", "others", "scores")}
    found = call(measure, single)
    assert not found.requires_grad
    torch.testing.assert_close(found, call(measure, arguments), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MEASURES)
def test_what_is_no_tensor_is_refused(name: str) -> None:
    measure, arguments = MEASURES[name], given()
    for key in measure.needs & {"maps", "others", "masks", "scores", "inputs"}:
        with pytest.raises(CAVTypeError, match=f"{key} is a list; expected a tensor"):
            call(measure, arguments | {key: [1.0]})


@pytest.mark.parametrize("name", MEASURES)
def test_docstrings_say_what_it_is_where_it_is_from_and_show_it(name: str) -> None:
    text = inspect.getdoc(MEASURES[name]) or ""
    for part in ("Args:", "Returns:", "Raises:", "Source:", "Example::", ">>> "):
        assert part in text, part
