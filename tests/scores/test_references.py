"""Scores against a reference: similarities of embeddings, and reconstruction errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, scores
from tests.scores.networks import autoencoder, check_like_a_function, embedder, pictures
from tests.support.errors import cav_error

REFERENCE = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)


class Twins(nn.Module):
    """The embeddings of two pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = embedder()
        self.other = embedder()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A pair of embeddings, of a picture and of its mirror image."""
        return self.tower(x), self.other(x.flip(-1))


@pytest.mark.parametrize("kind", ["cosine", "dot"])
@pytest.mark.parametrize("reference", [REFERENCE, torch.stack([REFERENCE, REFERENCE.flip(0)])], ids=["one", "each"])
def test_similarities(kind: Any, reference: torch.Tensor) -> None:
    score = scores.Similarity(reference, kind)
    check_like_a_function(embedder(), "1", score, pictures())
    embedded = embedder()(pictures())
    expected = F.cosine_similarity(embedded, reference, -1) if kind == "cosine" else (embedded * reference).sum(1)
    torch.testing.assert_close(score(embedded), expected)


@pytest.mark.parametrize("end", [nn.Sigmoid(), nn.Softmax(1), nn.Tanh()], ids=repr)
@pytest.mark.parametrize("samples", [1, 2])
def test_embeddings_that_are_squashed_carry(end: nn.Module, samples: int) -> None:
    references = torch.stack([REFERENCE, REFERENCE.flip(0)])[:samples]
    net = nn.Sequential(*embedder(), end)
    for score in (scores.Similarity(references), scores.Similarity(REFERENCE, "dot")):
        check_like_a_function(net, "1", score, pictures(samples))


@pytest.mark.parametrize("reference", [None, pictures(2, 8)], ids=["input", "given"])
def test_reconstructions_that_are_squashed_carry(reference: torch.Tensor | None) -> None:
    net = nn.Sequential(*autoencoder(), nn.Sigmoid())
    check_like_a_function(net, "2", scores.ReconstructionError(reference), pictures())


def test_each_of_two_embeddings_carries_half_of_their_similarity() -> None:
    net, x, score = Twins().eval(), pictures(), scores.Similarity()
    parts = LayerCAV(net, ["tower.4", "other.4"], score=score).attribute(x)
    for part in parts:
        torch.testing.assert_close(part.sum(1), torch.full((2,), 0.5, dtype=torch.float64))
    found = InputCAV(net, score=score).attribute(x, return_convergence_delta=True)
    assert found[1].abs().max() < 1e-9


def test_a_reference_with_a_graph_is_a_constant() -> None:
    net, x = embedder(), pictures()
    found = LayerCAV(net, "1", score=scores.Similarity(net(x.flip(0)))).attribute(x)
    assert torch.equal(found, LayerCAV(net, "1", score=scores.Similarity(net(x.flip(0)).detach())).attribute(x))


@pytest.mark.parametrize("kind", ["mse", "l1"])
@pytest.mark.parametrize("reference", [None, pictures(1, 8)[0] + 1, pictures(2, 8) + 1], ids=["input", "one", "each"])
def test_reconstruction_errors(kind: Any, reference: torch.Tensor | None) -> None:
    """Also where the model writes over its input: the input that was given counts."""
    score = scores.ReconstructionError(reference, kind)
    x = pictures()
    check_like_a_function(autoencoder(), "2", score, x)
    difference = autoencoder()(x.clone()) - (x if reference is None else reference)
    expected = difference.square() if kind == "mse" else difference.abs()
    found = LayerCAV(autoencoder(), "2", score=score, normalize=None)
    maps, delta = found.attribute(x, return_convergence_delta=True)
    assert maps.sum((1, 2, 3)).sub(expected.mean((1, 2, 3))).abs().min() > 1e-3, "constants have a part"
    assert (delta.abs().max() < 1e-12) == (reference is not None), "the input bypasses the layer"


def test_the_parts_of_an_error_by_hand() -> None:
    """``(x - r)^2 = x * (x - r) - r * (x - r)``: the second part is a constant."""
    x, reference = torch.tensor([[3.0, 5.0]], dtype=torch.float64), torch.tensor([1.0, 1.0], dtype=torch.float64)
    score = scores.ReconstructionError(reference)
    found, delta = InputCAV(nn.Identity(), score=score, normalize=None).attribute(x, return_convergence_delta=True)
    torch.testing.assert_close(found, x * (x - reference) / 2)
    assert delta.abs().max() == 0


def test_wrong_arguments_and_outputs_are_refused() -> None:
    embedded = torch.zeros(2, 4)
    with cav_error(ValueError, "reference has shape (3,); expected (4,) for all samples, or (2, 4)"):
        scores.Similarity(torch.zeros(3))(embedded)
    with cav_error(TypeError, "the model returned a tensor of shape (2, 4); expected by the score Similarity: a pair"):
        scores.Similarity()(embedded)
    with cav_error(ValueError, "the embeddings have the shapes (2, 4) and (2, 3); expected the same"):
        scores.Similarity()((embedded, embedded[:, :3]))
    with cav_error(ValueError, 'kind is \'l2\'; expected "cosine" or "dot"'):
        scores.Similarity(REFERENCE, "l2")  # type: ignore[arg-type]
    with cav_error(TypeError, "reference is a tensor of torch.int64; expected a floating-point tensor"):
        scores.Similarity(torch.tensor([1, 2]))
    with cav_error(TypeError, "reference is list; expected a floating-point tensor"):
        scores.ReconstructionError([1.0])  # type: ignore[arg-type]
    with cav_error(ValueError, "the model returned shape (2, 4) for an input of shape (2, 3, 8, 8); expected the same"):
        InputCAV(embedder(), score=scores.ReconstructionError()).attribute(pictures())
    with cav_error(TypeError, "the first input of the model is nothing; expected a floating-point tensor"):
        scores.ReconstructionError()(embedded)
