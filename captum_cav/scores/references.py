"""Scores that compare the output of the model with a reference: an embedding, or what is reconstructed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from captum_cav import checks
from captum_cav.errors import CAVTypeError, InputError
from captum_cav.scores.outputs import Shown, for_each_sample, refuse_output, tensor_of

# As in torch.nn.functional.cosine_similarity.
_SHORTEST = 1e-8


@dataclass(frozen=True, eq=False, repr=False)
class Similarity(Shown):
    """How similar an embedding is to a reference embedding, as in retrieval and in twin networks.

    The reference and the lengths of the vectors are constants. Without a reference, the model returns a pair of
    embeddings, and each of the two carries half of the similarity.

    Args:
        reference: shape (d, ...) for all samples, or (N, d, ...) with one reference for each sample. None if the model
            returns a pair of embeddings.
        kind: ``"cosine"``, or ``"dot"`` for the product without division by the lengths.

    Returns of a call:
        Shape (N,). The output of the model is a tensor of shape (N, d, ...), or an object that has it as
        ``"pooler_output"`` (transformers).

    Raises:
        OptionError, CAVTypeError: for arguments that cannot be used, and for another kind of output.
        InputError: for a reference of another shape.

    Example::

        >>> from captum_cav import InputCAV
        >>> reference = torch.tensor([3.0, 4.0])
        >>> score = Similarity(reference)
        >>> InputCAV(torch.nn.Identity(), score=score).attribute(torch.tensor([[1.0, 0.5]]))    # of 3 + 2
        tensor([[0.6000, 0.4000]])
        >>> score(torch.tensor([[3.0, 4.0]]))
        tensor([1.])
    """

    reference: torch.Tensor | None = None
    kind: Literal["cosine", "dot"] = "cosine"

    def __post_init__(self) -> None:
        checks.check_option("kind", self.kind, ("cosine", "dot"))
        _check_reference(self.reference)

    def __call__(self, output: Any) -> torch.Tensor:
        """The scores, see the class."""
        if self.reference is None:
            one, other = self._pair(output)
            products = (one * other).sum(1)
        else:
            one = tensor_of(output, self, "embeddings of shape (N, d)", (), "pooler_output")
            other = _fitting(self.reference, one).flatten(1)
            one = one.flatten(1)
            # Products of vectors, in which the reference is the weight of a layer. There also embeddings that end in a
            # sigmoid or a softmax carry, which a product element by element would take for gates.
            if len(other) == 1:
                products = one @ other[0]
            else:
                products = torch.stack([vector @ weights for vector, weights in zip(one, other, strict=True)])
        if self.kind == "dot":
            return products
        lengths = [torch.linalg.vector_norm(vectors.detach(), dim=1).clamp(min=_SHORTEST) for vectors in (one, other)]
        cosines: torch.Tensor = products / (lengths[0] * lengths[1])
        return cosines

    def _pair(self, output: Any) -> list[torch.Tensor]:
        """The two embeddings that the model returned, each of shape (N, d)."""
        if not (isinstance(output, (tuple, list)) and len(output) == 2 and all(map(checks.is_floating, output))):
            refuse_output(output, self, "a pair of embeddings, or a tensor and Similarity(reference)")
        shapes = [tuple(embeddings.shape) for embeddings in output]
        if shapes[0] != shapes[1]:
            raise InputError(f"the embeddings have the shapes {shapes[0]} and {shapes[1]}; expected the same.")
        return [embeddings.flatten(1) for embeddings in output]


@dataclass(frozen=True, eq=False, repr=False)
class ReconstructionError(Shown):
    """How far the output of an autoencoder is from what it reconstructs; a high score is a bad reconstruction.

    A reference that is given takes part of the score, as a constant. If the reference is the input of the model, its
    part is a contribution of the input for :class:`captum_cav.InputCAV`. For a layer, that part bypasses the layer, so
    it is in the convergence delta.

    Args:
        reference: shape (N, ...) or, for all samples, (...). None for the first input of the model.
        kind: ``"mse"`` for the mean of the squared differences, ``"l1"`` for the mean of the absolute differences.

    Returns of a call:
        Shape (N,). The output of the model is a tensor of shape (N, ...), or an object that has it as ``"logits"`` or
        ``"reconstruction"`` (transformers).

    Raises:
        OptionError, CAVTypeError: for arguments that cannot be used, and for another kind of output.
        InputError: for a reference of another shape.

    Example::

        >>> score = ReconstructionError(torch.zeros(2), "l1")
        >>> score(torch.tensor([[3.0, -1.0]]))
        tensor([2.])
        >>> from captum_cav import InputCAV
        >>> halve = torch.nn.AvgPool1d(2, 1)                   # the mean of two numbers, for one of them
        >>> error = InputCAV(lambda x: halve(x)[:, :1], score=ReconstructionError(torch.tensor([1.0])), normalize=None)
        >>> error.attribute(torch.tensor([[4.0, 2.0]]), return_convergence_delta=True)    # (3 - 1) * (2 + 1 - 1)
        (tensor([[4., 2.]]), tensor([0.]))
    """

    reference: torch.Tensor | None = None
    kind: Literal["mse", "l1"] = "mse"

    def __post_init__(self) -> None:
        checks.check_option("kind", self.kind, ("mse", "l1"))
        _check_reference(self.reference)

    @property
    def takes_inputs(self) -> bool:
        """Whether the reference is an input of the model."""
        return self.reference is None

    def __call__(self, output: Any, *inputs: Any) -> torch.Tensor:
        """The scores, see the class."""
        found = tensor_of(output, self, "a tensor of shape (N, ...)", (), "reconstruction", "logits")
        if self.reference is None:
            if not (inputs and checks.is_floating(inputs[0])):
                kind = type(inputs[0]).__name__ if inputs else "nothing"
                raise CAVTypeError(
                    f"the first input of the model is {kind}; expected a floating-point tensor. Pass what is "
                    "reconstructed, as ReconstructionError(reference)."
                )
            if inputs[0].shape != found.shape:
                raise InputError(
                    f"the model returned shape {tuple(found.shape)} for an input of shape {tuple(inputs[0].shape)}; "
                    "expected the same. Pass what is reconstructed, as ReconstructionError(reference)."
                )
            reference = inputs[0]
        else:
            reference = _fitting(self.reference, found)
        difference: torch.Tensor = (found - reference).flatten(1)
        error = difference.abs() if self.kind == "l1" else difference.square()
        return error.mean(1)


def _check_reference(reference: Any) -> None:
    """Refuse a reference that is neither None nor a floating-point tensor.

    Raises:
        CAVTypeError: with what was given.
    """
    if reference is not None and not checks.is_floating(reference):
        what = f"a tensor of {reference.dtype}" if isinstance(reference, torch.Tensor) else type(reference).__name__
        raise CAVTypeError(f"reference is {what}; expected a floating-point tensor.")


def _fitting(reference: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """The reference as a constant in the shape of the output, or with one entry for all samples."""
    fitting = for_each_sample("reference", reference.detach(), output.shape[1:], len(output))
    constant: torch.Tensor = fitting.to(output)
    return constant
