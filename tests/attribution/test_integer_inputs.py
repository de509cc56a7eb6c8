"""Integer inputs: each index is explained at the embedding layer that takes it, which is found by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, NeuronCAV
from captum_cav.errors import CAVTypeError, InputError, ModelError, OptionError
from tests.support.errors import cav_error
from tests.support.tensors import assert_same

IDS = torch.tensor([[1, 2, 3], [4, 4, 0]])


def words() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2)).double()


def of_words(net: nn.Sequential, ids: torch.Tensor = IDS, target: int = 1) -> torch.Tensor:
    """Written out: the embedding times its weights, summed up for each word."""
    return (net[0](ids) * net[2].weight[target].reshape(3, 4)).sum(-1).detach()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_an_index_gets_the_contributions_of_its_embedding(dtype: torch.dtype) -> None:
    net = words()
    found, delta = InputCAV(net, normalize=None).attribute(IDS.to(dtype), 1, return_convergence_delta=True)
    assert_same(found, of_words(net))
    assert_same(delta, torch.zeros(2, dtype=torch.float64))
    neuron = NeuronCAV(net, "2", normalize=None).attribute(IDS.to(dtype), 1)
    assert_same(neuron, found)
    layer = LayerCAV(net, "0", normalize=None).attribute(IDS.to(dtype), 1).sum(-1)
    assert_same(layer, found)
    parts = InputCAV(net, normalize=None).attribute(IDS.to(dtype), 1, internal_batch_size=1)
    assert_same(parts, found)


def test_the_rules_behind_the_embedding_are_told() -> None:
    table = InputCAV(words()).explain_rules(IDS)
    assert [row.operation for row in table if row.operation == "linear"] == ["linear"]


#: The embedding of the model is called with a view of the indices.
VIEWS: dict[str, Callable[[nn.Sequential, torch.Tensor], torch.Tensor]] = {
    "a function": lambda net, ids: net(ids),
    "flattened": lambda net, ids: net[2](net[0](ids.flatten()).reshape(len(ids), 12)),
    "transposed": lambda net, ids: net[2](net[0](ids.T).transpose(0, 1).flatten(1)),
    "column by column": lambda net, ids: net[2](torch.cat([net[0](ids[:, i]) for i in range(3)], 1)),
    "turned round": lambda net, ids: net[2](torch.cat([net[0](ids[:, i]) for i in (2, 0, 1)], 1).roll(-4, 1)),
    "already long": lambda net, ids: net[2](net[0](ids.long()).flatten(1)),
    "in chunks": lambda net, ids: net[2](torch.cat([net[0](part) for part in ids.split(1, 1)], 1).flatten(1)),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_of_the_indices_are_followed(view: str) -> None:
    net = words()
    for ids in (IDS, IDS.T.contiguous().T)[: 1 if view == "flattened" else 2]:  # to flatten the second would copy it
        found, delta = InputCAV(lambda ids: VIEWS[view](net, ids), normalize=None).attribute(
            ids, 1, return_convergence_delta=True
        )
        assert_same(found, of_words(net))
        assert delta.abs().max() < 1e-12


def test_an_index_that_goes_into_two_embeddings_gets_both_contributions() -> None:
    net, other = words(), nn.Embedding(7, 1).double()
    found = InputCAV(lambda ids: net(ids)[:, 1] + other(ids).sum((1, 2)), normalize=None).attribute(IDS)
    assert_same(found, of_words(net) + other(IDS)[..., 0].detach())


def test_other_embeddings_are_constants() -> None:
    net, places = words(), nn.Embedding(3, 4).double()

    def model(ids: torch.Tensor) -> torch.Tensor:
        # The indices are 0, 1, 2 here, as those of the places.
        return net[2]((net[0](ids) + places(torch.arange(3))).flatten(1))

    ids = torch.arange(3)[None]
    found, delta = InputCAV(model, normalize=None).attribute(ids, 1, return_convergence_delta=True)
    assert_same(found, of_words(net, ids))
    assert delta.abs().max() < 1e-12


class Mixed(nn.Module):
    """Indices, numbers and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words = words()
        self.numbers = nn.Linear(3, 2).double()

    def forward(
        self, ids: torch.Tensor, numbers: torch.Tensor, mask: torch.Tensor | None = None, scale: float = 1.0
    ) -> torch.Tensor:
        embedded = self.words[0](ids)
        if mask is not None:
            embedded = embedded * mask[..., None]
        return (self.words[2](embedded.flatten(1)) + self.numbers(numbers)) * scale


NUMBERS = torch.tensor([[0.5, -1.0, 2.0], [1.0, 3.0, -0.5]], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 0], [1, 0, 1]])


def test_indices_and_numbers_are_explained_together() -> None:
    model = Mixed()
    of_ids, of_numbers = of_words(model.words), (NUMBERS * model.numbers.weight[1]).detach()
    found, delta = InputCAV(model, normalize=None).attribute((IDS, NUMBERS), 1, return_convergence_delta=True)
    assert isinstance(found, tuple)
    assert_same(found[0], of_ids)
    assert_same(found[1], of_numbers)
    assert delta.abs().max() < 1e-12
    named = InputCAV(model, normalize=None).attribute({"numbers": NUMBERS, "ids": IDS}, 1)
    assert list(named) == ["numbers", "ids"]
    assert_same(named["ids"], of_ids)
    assert_same(named["numbers"], of_numbers)


def test_a_mask_in_a_dict_has_no_contributions() -> None:
    model = Mixed()
    given: dict[str, Any] = {"ids": IDS, "mask": MASK, "numbers": NUMBERS, "scale": 2.0}
    found, delta = InputCAV(model, normalize=None).attribute(given, 1, return_convergence_delta=True)
    assert list(found) == ["ids", "numbers"]
    assert_same(found["ids"], 2 * of_words(model.words) * MASK)
    assert delta.abs().max() < 1e-12
    rest = {"mask": MASK, "scale": 2.0}
    by_position = InputCAV(model, normalize=None).attribute((IDS, NUMBERS), 1, additional_forward_kwargs=rest)
    assert_same(by_position[0], found["ids"])
    in_parts = InputCAV(model, normalize=None).attribute(given, 1, internal_batch_size=1)
    assert_same(in_parts["ids"], found["ids"])
    with pytest.raises(ModelError, match="does not depend on the inputs"):
        NeuronCAV(model, "words.2", normalize=None).attribute(given, 1)  # not on the numbers


def test_layers_take_arguments_by_keyword() -> None:
    model = Mixed()
    given: dict[str, Any] = {"ids": IDS, "mask": MASK, "numbers": NUMBERS}
    found = LayerCAV(model, "words.0", normalize=None).attribute(given, 1)
    assert_same(found.sum(-1), of_words(model.words) * MASK)
    cav = LayerCAV(model, "words.0", normalize=None)
    assert_same(cav.attribute((IDS, NUMBERS), 1, additional_forward_kwargs={"mask": MASK}), found)
    (first, second) = cav.attribute_targets((IDS, NUMBERS), [0, 1], additional_forward_kwargs={"mask": MASK})
    assert_same(second, found)
    assert not torch.allclose(first, second)
    rows = cav.explain_rules((IDS, NUMBERS), additional_forward_kwargs={"mask": MASK})
    assert [row.operation for row in rows].count("mul") == 2


def test_arguments_that_are_given_twice_or_wrongly_are_refused() -> None:
    cav = LayerCAV(Mixed(), "words.0")
    with cav_error(ValueError, "'mask' is in inputs and in additional_forward_kwargs"):
        cav.attribute({"ids": IDS, "numbers": NUMBERS, "mask": MASK}, 1, additional_forward_kwargs={"mask": MASK})
    with cav_error(TypeError, "additional_forward_kwargs is a list"):
        cav.attribute((IDS, NUMBERS), 1, additional_forward_kwargs=[MASK])
    with cav_error(ValueError, "inputs is a dict without a tensor"):
        cav.attribute({"scale": 2.0}, 1)
    with cav_error(TypeError, "whose keys are not all text"):
        cav.attribute({0: IDS}, 1)
    assert issubclass(InputError, ValueError)


def test_integers_that_are_computed_with_before_the_embedding_are_refused() -> None:
    net = words()
    for model in (lambda ids: net(ids + 0), lambda ids: net[2](F.embedding(ids, net[0].weight).flatten(1))):
        with cav_error(TypeError, "inputs are torch.int64", "use LayerCAV at the layer that takes them"):
            InputCAV(model).attribute(IDS, 1)
    assert issubclass(CAVTypeError, TypeError)


def test_options_that_need_floating_point_inputs_are_refused() -> None:
    with pytest.raises(OptionError, match="multiply_by_inputs=False gives a coefficient for each unit"):
        InputCAV(words(), multiply_by_inputs=False).attribute(IDS, 1)
    with pytest.raises(OptionError, match="create_graph=True needs floating-point inputs"):
        InputCAV(words()).attribute(IDS, 1, grad_kwargs={"create_graph": True})
    with pytest.raises(OptionError, match="create_graph=True needs floating-point inputs"):
        NeuronCAV(words(), "2").attribute(IDS, 1, grad_kwargs={"create_graph": True})


def test_a_number_that_is_not_finite_is_found_where_arguments_have_names() -> None:
    model = Mixed()
    with pytest.raises(ValueError, match=r"inputs\['numbers'\] holds NaN or infinity in sample 0"):
        InputCAV(model).attribute({"ids": IDS, "numbers": NUMBERS * torch.tensor([[torch.nan], [1.0]])}, 1)
    with torch.no_grad():
        model.numbers.weight[1, 0] = torch.inf
    with pytest.raises(ModelError, match=r"not finite .* out of module 'numbers'"):
        LayerCAV(model, "words.0").attribute({"ids": IDS, "numbers": NUMBERS}, 1)
