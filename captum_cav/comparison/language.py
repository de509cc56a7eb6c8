"""Captum's attribution of language models as methods of a comparison."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from captum import attr as captum_attr
from torch import nn

from captum_cav.checks import is_ids
from captum_cav.comparison import rivals
from captum_cav.comparison.methods import BoundMethod, Targets, Unit
from captum_cav.comparison.places import INPUT, Places
from captum_cav.errors import CAVTypeError, InputError, OptionError
from captum_cav.suggestions import did_you_mean

#: The classes that ``LLMGradientAttribution`` and ``LLMAttribution`` of Captum take.
_OF_GRADIENTS = captum_attr.LLMGradientAttribution.SUPPORTED_METHODS
_OF_PERTURBATIONS = captum_attr.LLMAttribution.SUPPORTED_METHODS


@dataclass(frozen=True)
class LanguageModelMethod:
    """A class of Captum inside ``LLMGradientAttribution`` or ``LLMAttribution``; see :func:`language_model_method`."""

    factory: type[Any]
    baseline: int
    layer: str | nn.Module | None
    options: Mapping[str, Any]
    signed = True
    unit: Unit = "score"
    any_model = True

    def __repr__(self) -> str:
        shown = [f"{name}={value!r}" for name, value in {"baseline": self.baseline, **self.options}.items()]
        return f"language_model_method({', '.join([self.factory.__name__, *shown])})"

    @property
    def takes_layer(self) -> bool:
        """Whether the class explains layers."""
        return issubclass(self.factory, _OF_GRADIENTS)

    def at(self, model: nn.Module, layer: str, inputs: torch.Tensor, places: Places) -> BoundMethod:
        """Make the method ready for a model and an embedding; see :meth:`AnyMethod.at`."""
        if not is_ids(inputs):
            raise InputError(f"inputs have shape {tuple(inputs.shape)} and {inputs.dtype}; expected token ids (N, T).")
        where = layer if self.takes_layer else INPUT
        prepared = rivals.prepare(self.factory, model, where, inputs, places)
        run = _LanguageModel(prepared.model)
        if self.takes_layer:
            inner = self.factory(run, prepared.layer)
            llm: Any = captum_attr.LLMGradientAttribution(inner, _Ids())
            options = {"baselines": self.baseline} if "baselines" in _parameters(self.factory) else {}
        else:
            llm = captum_attr.LLMAttribution(self.factory(run), _Ids())
            options = {"use_cached_outputs": False}

        def explain(inputs: torch.Tensor, targets: Targets) -> torch.Tensor:
            if targets is None:
                raise OptionError("target is None; expected the id of the next token, or one for each prompt.")
            rows = []
            for row, target in zip(inputs, targets, strict=True):
                prompt = captum_attr.TextTokenInput(" ".join(map(str, row.tolist())), _Ids(), baselines=self.baseline)
                found = llm.attribute(prompt, torch.tensor([target], device="cpu"), **options, **self.options)
                rows.append(found.seq_attr.detach())
            return torch.stack(rows).to(inputs.device)

        return BoundMethod(prepared.model, explain)


def language_model_method(
    factory: type[Any], /, layer: str | nn.Module | None = None, *, baseline: int, **options: Any
) -> LanguageModelMethod:
    """A method of Captum for language models, for the ``methods`` of :func:`captum_cav.compare`.

    Captum's ``LLMGradientAttribution`` and ``LLMAttribution`` explain the logarithm of the probability of the next
    token. The model of the comparison takes token ids of shape (N, T) and returns the scores of the next token, of
    shape (N, vocabulary). ``score=lambda output: output.logits[:, -1]`` makes such a model of one of transformers.

    Args:
        factory: a class that Captum takes there: ``LayerIntegratedGradients``, ``LayerGradientXActivation`` or
            ``LayerGradientShap``, which need a layer, such as the embedding; ``FeatureAblation``,
            ``ShapleyValueSampling``, ``ShapleyValues``, ``Lime`` or ``KernelShap``.
        layer: the layer to explain, a module or its qualified name; None for the layers of ``compare``.
        baseline: the id of the token that stands for an absent token: the mask token, the padding, a space, ...
        options: options of the method ``attribute`` of the class, such as ``n_steps``.

    Returns:
        The method.

    Raises:
        CAVTypeError: for a class that Captum does not take there.
        OptionError: for an option that ``attribute`` does not have, and for a layer of a method without one.

    Example::

        >>> from captum.attr import FeatureAblation
        >>> from captum_cav import compare
        >>> class Counting(torch.nn.Module):                 # the score of a token is how often the prompt has it
        ...     def forward(self, ids):
        ...         return torch.nn.functional.one_hot(ids, 10).sum(1).float()
        >>> report = compare(
        ...     Counting().eval(),
        ...     torch.tensor([[7, 3, 7]]),
        ...     target=7,
        ...     methods={"ablation": language_model_method(FeatureAblation, baseline=0)},
        ...     metrics=(),
        ...     progress=False,
        ... )
        >>> bool((report.raw["ablation", "input"][0, [0, 2]] > 0.5).all())
        True
    """
    if not isinstance(factory, type) or not issubclass(factory, (*_OF_GRADIENTS, *_OF_PERTURBATIONS)):
        names = ", ".join(one.__name__ for one in (*_OF_GRADIENTS, *_OF_PERTURBATIONS))
        raise CAVTypeError(f"language_model_method was given {factory!r}; expected one of Captum's classes {names}.")
    known = [name for name in _parameters(factory) if name not in _TAKEN]
    for name in options:
        if name not in known:
            raise OptionError(
                f"{factory.__name__} has no option {name!r}{did_you_mean(name, known)}; it has {', '.join(known)}."
            )
    if layer is not None and not issubclass(factory, _OF_GRADIENTS):
        raise OptionError(f"{factory.__name__} explains no layer, but layer={layer!r} was given; leave it out.")
    return LanguageModelMethod(factory, baseline, layer, options)


_TAKEN = ("self", "inputs", "baselines", "target", "additional_forward_args", "return_convergence_delta")


def _parameters(factory: type[Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(factory.attribute).parameters


class _LanguageModel(nn.Module):
    """A model of scores of the next token in the form that Captum expects of language models."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.device = next((one.device for one in model.parameters()), torch.device("cpu"))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.model(input_ids)[:, None])


class _Ids:
    """A tokenizer whose texts are numbers, because the ids of a comparison are known already."""

    def encode(self, text: str, return_tensors: str | None = None, **_: Any) -> Any:
        ids = [int(word) for word in text.split()]
        return ids if return_tensors is None else torch.tensor([ids], device="cpu")

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, ids.flatten().tolist() if isinstance(ids, torch.Tensor) else ids))

    def convert_ids_to_tokens(self, ids: Any) -> list[str]:
        return [str(one) for one in ids]

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        spans, start = [], 0
        for word in text.split():
            start = text.index(word, start)
            spans.append((start, start + len(word)))
            start += len(word)
        return {"input_ids": self.encode(text), "offset_mapping": spans}
