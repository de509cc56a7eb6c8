"""Contributions of tokens: which tokens gave each output its score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from captum.attr import GradientAttribution

from captum_cav import checks
from captum_cav.attribution import Normalize, Rules
from captum_cav.attribution.contributions import ContributionAttribution
from captum_cav.attribution.explained_inputs import embeddings_for
from captum_cav.attribution.input_checks import Arguments
from captum_cav.attribution.options import OnUnknown, check_options
from captum_cav.attribution.scores import SelectedScores, select_passed
from captum_cav.attribution.several import contributions_by_score
from captum_cav.errors import InputError, LayerError, ModelError, OptionError, TargetError
from captum_cav.operations import TABLE
from captum_cav.propagation.forward import Forward, Request, run
from captum_cav.propagation.hooks import Site
from captum_cav.propagation.reentrancy import suspends_outer_attribution
from captum_cav.text.places import Place, places_of_embeddings, places_of_layer
from captum_cav.text.result import SequenceContributions
from captum_cav.text.tasks import (
    Pooling,
    Task,
    causal,
    classification,
    generate,
    is_encoder_decoder,
    similarity,
    start_of_decoder,
    translation,
)
from captum_cav.text.tokens import are_special, is_batch, sequences_in, spelled

TokenScore: TypeAlias = Literal["logit", "log_odds"]
_NEW_TOKENS = 20
_EMBEDDINGS = "the embedding"


class SequenceCAV(ContributionAttribution):
    """Contributions of tokens to each output of a model of sequences: a matrix of outputs x tokens.

    One forward pass takes the prompt and the output. The backward passes of many outputs run together. The matrix
    equals one attribution for each output token, of a forward pass that ends before the token.

    Args:
        model: a model of transformers, or any module that takes indices of tokens of shape (N, T). Causal language
            models and encoder-decoders return logits of shape (N, T, vocabulary), or an object that has them as
            ``logits``; classifiers return logits of shape (N, classes) or (N, T, classes); encoders of sentences return
            vectors.
        layer: the layer whose units are summed up for each token: a module, its qualified name, or a list of either.
            None for the embedding that takes the tokens, which is found by itself.
        tokenizer: turns texts into tokens, and tells how tokens are spelled: a tokenizer of transformers, or a
            ``tokenizers.Tokenizer``. None if only indices of tokens are given.
        rules, on_unknown: as for :class:`captum_cav.LayerCAV`.
        normalize: as for :class:`captum_cav.LayerCAV`. None gives contributions in units of the score.
        score: ``"logit"``, the logit of the output; ``"log_odds"``, ``log(p / (1 - p))`` of its probability.
        pooling: how an encoder of sentences makes one vector of the vectors of the tokens: their ``"mean"``, the
            ``"first"``, or a function of what the model returns. It is not used if the model makes one vector itself.

    Raises:
        LayerError, OptionError, CAVTypeError: for arguments that cannot be used.

    Source: Kakishita and Hattori, equations 1-9, with one score for each output.

    Example::

        >>> import torch
        >>> class NextToken(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embedding, self.head = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5)
        ...     def forward(self, ids):
        ...         return self.head(self.embedding(ids).cumsum(1))
        >>> found = SequenceCAV(NextToken()).attribute([1, 2, 3], output=[4, 0])
        >>> found.contributions.shape                   # two output tokens, and five tokens
        torch.Size([2, 5])
        >>> found.contributions[0, 3:]                  # what comes later contributes nothing
        tensor([0., 0.])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        layer: torch.nn.Module | str | Sequence[torch.nn.Module | str] | None = None,
        *,
        tokenizer: Any = None,
        rules: Rules = "attnlrp",
        normalize: Normalize = None,
        on_unknown: OnUnknown = "error",
        score: TokenScore = "logit",
        pooling: Pooling = "mean",
    ) -> None:
        model = checks.check_model(model)
        checks.check_option("score", score, ("logit", "log_odds"))
        if not callable(pooling):
            checks.check_option("pooling", pooling, ("mean", "first"))
        self._options = check_options(model, rules, normalize, on_unknown, score)
        GradientAttribution.__init__(self, model)
        self._several = isinstance(layer, (list, tuple))
        layers: list[Any] = list(layer) if isinstance(layer, (list, tuple)) else [layer] * (layer is not None)
        if self._several and not layers:
            raise LayerError("layer is an empty list; expected at least one layer.")
        self._layers = [checks.find_layer(model, one) for one in layers]
        self._pooling = pooling
        self.tokenizer = tokenizer

    @suspends_outer_attribution
    def attribute(
        self,
        inputs: Any,
        output: Any = None,
        *,
        target: Any = None,
        similar_to: Any = None,
        max_new_tokens: int | None = None,
        contrast: Any = None,
        internal_batch_size: int = 8,
        **generation: Any,
    ) -> Any:
        """Contributions of each token to the score of each output.

        The outputs are generated tokens, unless ``target`` or ``similar_to`` says otherwise.

        Args:
            inputs: the prompt, the source or the text: a text, or indices of tokens of shape (T,). Or several of them:
                a list of texts or sequences, a tensor of shape (N, T), or what a tokenizer returns. Padding, where
                ``attention_mask`` is 0, is taken away before the model runs.
            output: what the model shall have said: a text, or indices of tokens; a list of these for several prompts.
                No special tokens are added to texts. None for what the model generates.
            target: for classifiers: the index of a class of the text, or a pair of a position and the index of a class
                of the token there. A list of these explains several classes.
            similar_to: for encoders of sentences: another text, or a list with one for each text. The score is the
                cosine similarity, and each of the two texts carries half of it.
            max_new_tokens: the largest number of tokens that the model generates; 20 by default.
            contrast: a token, as its index or its text, or several: each score is the logit of the output minus the
                mean logit of these tokens. For classifiers, indices of classes.
            internal_batch_size: how many outputs share a backward pass. A larger number needs more memory.
            generation: further options of the method ``generate`` of the model. By default, the model takes the
                likeliest token each time.

        Returns:
            A :class:`captum_cav.text.SequenceContributions`; for a list of layers, a list with one for each layer. For
            several prompts, a list with one of these for each prompt.

        Raises:
            InputError, TargetError, OptionError, ModelError, LayerError, CAVTypeError, UnsupportedOperationError: as
                for :meth:`captum_cav.LayerCAV.attribute`.
        """
        checks.check_count(internal_batch_size, "internal_batch_size")
        if sum(one is not None for one in (output, target, similar_to)) > 1:
            raise OptionError("output, target and similar_to say what is explained; expected at most one of them.")
        if max_new_tokens is not None:
            checks.check_count(max_new_tokens, "max_new_tokens")
        compared = self._contrast(contrast)
        several = is_batch(inputs)
        device = self._device()
        texts = [text.to(device) for text in sequences_in(inputs, "inputs", self.tokenizer)]
        outputs = _for_each(output, texts, several, "output")
        others = _for_each(similar_to, texts, several, "similar_to")
        results = []
        for text, wanted, other in zip(texts, outputs, others, strict=True):
            if target is not None:
                task = classification(self.forward_func, text, target if isinstance(target, list) else [target])
            elif other is not None:
                (second,) = sequences_in(other, "similar_to", self.tokenizer)
                task = similarity(self.forward_func, text, second.to(device), self._pooling)
            else:
                task = self._generation(text, wanted, max_new_tokens or _NEW_TOKENS, generation)
            results.append(self._explain(task, compared, internal_batch_size))
        return results if several else results[0]

    def _generation(self, text: torch.Tensor, wanted: Any, max_new_tokens: int, options: dict[str, Any]) -> Task:
        model = self.forward_func
        if wanted is None:
            said = generate(model, text, max_new_tokens, options)
        else:
            (said,) = sequences_in(wanted, "output", self.tokenizer, adds_special=False)
        said = said.to(text.device)
        if is_encoder_decoder(model):
            return translation(model, text, text.new_tensor([start_of_decoder(model)]), said)
        return causal(model, text, said)

    def _device(self) -> torch.device:
        parameters = self.forward_func.parameters() if isinstance(self.forward_func, torch.nn.Module) else iter(())
        first = next(parameters, None)
        return torch.device("cpu") if first is None else first.device

    def _contrast(self, contrast: Any) -> torch.Tensor | None:
        if contrast is None:
            return None
        if self._options.score == "log_odds":
            raise OptionError('contrast compares logits; expected score="logit".')
        if checks.as_integer(contrast) is not None:
            contrast = [contrast]
        return torch.cat(sequences_in(contrast, "contrast", self.tokenizer, adds_special=False))

    def _explain(self, task: Task, contrast: torch.Tensor | None, at_once: int) -> Any:
        passed = self._passed(task)
        if self._layers:
            places = [
                places_of_layer(passed, task, site, name, module) for site, (name, module) in enumerate(self._layers)
            ]
            names = [f"layer {name}" for name, _ in self._layers]
        else:
            places, names = [places_of_embeddings(passed, task)], [_EMBEDDINGS]
        taps = [place.tap for of_layer in places for place in of_layer]
        selected = self._select(passed, task, contrast, taps)
        deltas = self._deltas(passed, selected, places, names)
        sums = [place.sum_up for of_layer in places for place in of_layer]
        found = iter(contributions_by_score(passed, selected.values, taps, at_once, sums))
        columns = sum(map(len, task.segments.values()))
        results = []
        for of_layer, name, delta in zip(places, names, deltas, strict=True):
            parts = [
                (task.columns[place.input], has_rows, part)
                for place in of_layer
                for has_rows, part in zip(place.has_rows, next(found), strict=True)
            ]
            matrix = torch.zeros(len(selected.values), columns, dtype=parts[0][2].dtype, device="cpu")
            delta = delta.to(matrix)
            for start, has_rows, part in parts:
                if has_rows:
                    matrix[:, start : start + part.shape[1]] += part.to(matrix)
                else:
                    delta = delta + part[:, 0].to(matrix)
            _check_causal(matrix, task)
            results.append(self._result(task, selected, passed, contrast, name, matrix, delta))
        return results if self._several else results[0]

    def _passed(self, task: Task) -> Forward:
        checks.check_inputs(self.forward_func, task.inputs)
        return run(
            self.forward_func,
            task.inputs,
            (),
            [Site(module, False) for _, module in self._layers],
            Request(
                table=TABLE,
                rules=self._options.rules,
                called=task.head,
                on_unknown=self._options.on_unknown,
                embeds=None if self._layers else embeddings_for(Arguments(task.inputs, (), []), self.forward_func),
                with_shares=True,
            ),
        )

    def _deltas(
        self, passed: Forward, selected: SelectedScores, places: Sequence[Sequence[Place]], names: Sequence[str]
    ) -> list[torch.Tensor]:
        """What stays unexplained of each output at each layer, after all checks of scores and contributions."""
        if all(len(of_layer) == 1 for of_layer in places):
            groups = [([of_layer[0].tap for of_layer in places], list(names), False)]
        else:
            groups = [
                ([place.tap for place in of_layer], [name] * len(of_layer), True)
                for of_layer, name in zip(places, names, strict=True)
            ]
        deltas = []
        for taps, of_taps, joint in groups:
            _, found = self._contributions(
                passed, selected, taps, of_taps, with_delta=True, joint=joint, keep_graph=True, grad_kwargs=None
            )
            deltas += found
        return deltas

    def _select(
        self, passed: Forward, task: Task, contrast: torch.Tensor | None, taps: Sequence[int]
    ) -> SelectedScores:
        """The score of each output, as one of a batch of scores."""
        if task.outputs is None:
            if contrast is not None or self._options.score != "logit":
                raise OptionError('a similarity has no classes; expected no contrast, and score="logit".')
            return select_passed(passed, None, "output", taps)
        selected = select_passed(passed, task.outputs.tolist(), self._options.score, taps)
        if self._options.score == "logit":
            # One operation for all rows. An operation for each row would write a matrix of zeros for each of them.
            with torch.enable_grad():
                chosen = selected.output.gather(1, task.outputs[:, None].to(selected.output.device))[:, 0]
            selected = selected._replace(values=chosen)
        if contrast is None:
            return selected
        choices = selected.output.shape[1]
        if bool((contrast >= choices).any() | (contrast < 0).any()):
            raise TargetError(f"contrast names {contrast.tolist()}; expected indices from 0 to {choices - 1}.")
        with torch.enable_grad():
            others = selected.output[:, contrast.to(selected.output.device)].mean(1)
            return selected._replace(values=selected.values - others)

    def _result(
        self,
        task: Task,
        selected: SelectedScores,
        passed: Forward,
        contrast: torch.Tensor | None,
        layer: str,
        matrix: torch.Tensor,
        delta: torch.Tensor,
    ) -> SequenceContributions:
        scores = selected.values.detach().to(matrix)
        normalize = self._options.normalize
        divisor = torch.ones_like(scores) if normalize is None else scores if normalize == "score" else scores.abs()
        matrix = matrix / divisor[:, None]
        segments, start = {}, 0
        for name, part in task.segments.items():
            segments[name] = slice(start, start + len(part))
            start += len(part)
        ids = torch.cat(list(task.segments.values())).cpu()
        generates = "output" in segments
        if task.outputs is None:
            outputs, spellings, probabilities = torch.zeros(1, dtype=torch.long, device="cpu"), ["similarity"], None
        else:
            outputs = task.outputs.cpu()
            spellings = spelled(outputs, self.tokenizer) if generates else self._classes(outputs)
            logits = passed.output.detach().to(matrix)
            probabilities = logits.softmax(1).gather(1, outputs[:, None])[:, 0]
        compared = (
            [] if contrast is None else spelled(contrast, self.tokenizer) if generates else self._classes(contrast)
        )
        return SequenceContributions(
            contributions=matrix,
            scores=scores,
            probabilities=probabilities,
            constants=(scores - selected.constants.to(matrix)) / divisor - matrix.sum(1) - delta,
            unexplained=delta,
            tokens=spelled(ids, self.tokenizer),
            token_ids=ids,
            output_tokens=spellings,
            output_ids=outputs,
            segments=segments,
            is_special=are_special(ids, self.tokenizer),
            layer=layer.removeprefix("layer ").strip("'"),
            normalize=normalize,
            contrast_tokens=[compared] * len(scores) if compared else [],
            tokenizer=self.tokenizer,
        )

    def _classes(self, indices: torch.Tensor) -> list[str]:
        """The names of classes, as the model has them; else their indices."""
        names = getattr(getattr(self.forward_func, "config", None), "id2label", None) or {}
        return [str(names.get(index, index)) for index in indices.tolist()]


def _for_each(given: Any, texts: Sequence[torch.Tensor], several: bool, name: str) -> list[Any]:
    """An argument with one entry for each text."""
    if given is None or not several:
        return [given] * len(texts)
    entries = list(given) if is_batch(given) and not hasattr(given, "keys") else sequences_in(given, name, None)
    if len(entries) != len(texts):
        raise InputError(f"{name} has {len(entries)} entries for {len(texts)} texts; expected one for each.")
    return entries


def _check_causal(matrix: torch.Tensor, task: Task) -> None:
    """Refuse a model in which tokens that come later than an output contribute to it.

    Raises:
        ModelError: says how such a model is explained.
    """
    if task.first_later is None:
        return
    columns = torch.arange(matrix.shape[1], device=matrix.device)
    later = columns[None] >= torch.tensor(task.first_later, device=matrix.device)[:, None]
    if bool((matrix * later).abs().sum() > 1e-6 * matrix.abs().sum()):
        raise ModelError(
            "tokens that come later contribute to an output, so the model does not generate one token after the other; "
            "expected a causal language model. For a model that fills in masks, pass target=(position, token)."
        )
