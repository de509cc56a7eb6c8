"""Contributions of tokens: which tokens gave each output its score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from captum.attr import GradientAttribution

from captum_cav import checks
from captum_cav.attribution import Normalize, Rules
from captum_cav.attribution.contributions import ContributionAttribution, chosen_tap
from captum_cav.attribution.options import OnUnknown, check_options
from captum_cav.attribution.scores import SelectedScores, select_passed
from captum_cav.attribution.several import contributions_by_score
from captum_cav.errors import LayerError
from captum_cav.operations import TABLE
from captum_cav.propagation.forward import Forward, Request, run
from captum_cav.propagation.hooks import Site
from captum_cav.propagation.reentrancy import suspends_outer_attribution
from captum_cav.text.result import SequenceContributions
from captum_cav.text.tasks import Task, causal, generate
from captum_cav.text.tokens import are_special, is_batch, sequences_in, spelled

TokenScore: TypeAlias = Literal["logit", "log_odds"]


class SequenceCAV(ContributionAttribution):
    """Contributions of tokens to each output of a model of sequences: a matrix of outputs x tokens.

    One forward pass takes the prompt and the output. The backward passes of many outputs run together. The matrix
    equals one attribution for each output token, of a forward pass that ends before the token.

    Args:
        model: a causal language model, as transformers has them. Any module will do that takes indices of tokens of
            shape (N, T) and returns logits of shape (N, T, vocabulary), or an object that has them as ``logits``.
        layer: the layer whose units are summed up for each token: a module, its qualified name, or a list of either.
            None for the embedding of the tokens.
        tokenizer: turns texts into tokens, and tells how tokens are spelled: a tokenizer of transformers, or a
            ``tokenizers.Tokenizer``. None if only indices of tokens are given.
        rules, on_unknown: as for :class:`captum_cav.LayerCAV`.
        normalize: as for :class:`captum_cav.LayerCAV`. None gives contributions in units of the score.
        score: ``"logit"``, the logit of the output; ``"log_odds"``, ``log(p / (1 - p))`` of its probability.

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
    ) -> None:
        model = checks.check_model(model)
        checks.check_option("score", score, ("logit", "log_odds"))
        self._options = check_options(model, rules, normalize, on_unknown, score)
        GradientAttribution.__init__(self, model)
        self._several = isinstance(layer, (list, tuple))
        layers: list[Any] = list(layer) if isinstance(layer, (list, tuple)) else [layer or _embedding_of(model)]
        self._layers = [checks.find_layer(model, one) for one in layers]
        if not self._layers:
            raise LayerError("layer is an empty list; expected at least one layer.")
        self.tokenizer = tokenizer

    @suspends_outer_attribution
    def attribute(
        self,
        inputs: Any,
        output: Any = None,
        *,
        max_new_tokens: int | None = None,
        contrast: Any = None,
        internal_batch_size: int = 8,
        **generation: Any,
    ) -> Any:
        """Contributions of each token to the score of each output token.

        Args:
            inputs: the prompt: a text, or indices of tokens of shape (T,). Or several prompts: a list of texts or
                sequences, a tensor of shape (N, T), or what a tokenizer returns. Padding, where ``attention_mask`` is
                0, is taken away before the model runs.
            output: what the model shall have said: a text, or indices of tokens; a list of these for several prompts.
                None for what the model generates.
            max_new_tokens: the largest number of tokens that the model generates.
            contrast: a token, as its index or its text, or several: the score of each output token is its logit minus
                the mean logit of these tokens.
            internal_batch_size: how many output tokens share a backward pass. A larger number needs more memory.
            generation: further options of the method ``generate`` of the model. By default, the model takes the
                likeliest token each time.

        Returns:
            A :class:`captum_cav.text.SequenceContributions`; for a list of layers, a list with one for each layer. For
            several prompts, a list with one of these for each prompt.

        Raises:
            InputError, ModelError, LayerError, CAVTypeError, UnsupportedOperationError: as for
                :meth:`captum_cav.LayerCAV.attribute`.
        """
        checks.check_count(internal_batch_size, "internal_batch_size")
        prompts = sequences_in(inputs, "inputs", self.tokenizer)
        outputs: list[Any] = list(output) if is_batch(inputs) and output is not None else [output] * len(prompts)
        results = []
        for prompt, wanted in zip(prompts, outputs, strict=True):
            prompt = prompt.to(self._device())
            if wanted is None:
                said = generate(self.forward_func, prompt, max_new_tokens or 20, generation)
            else:
                (said,) = sequences_in(wanted, "output", self.tokenizer, adds_special=False)
            task = causal(self.forward_func, prompt, said.to(prompt.device))
            results.append(self._explain(task, self._contrast(contrast), internal_batch_size))
        return results if is_batch(inputs) else results[0]

    def _device(self) -> torch.device:
        parameters = self.forward_func.parameters() if isinstance(self.forward_func, torch.nn.Module) else iter(())
        first = next(parameters, None)
        return torch.device("cpu") if first is None else first.device

    def _contrast(self, contrast: Any) -> torch.Tensor | None:
        if contrast is None:
            return None
        if checks.as_integer(contrast) is not None:
            contrast = [contrast]
        return torch.cat(sequences_in(contrast, "contrast", self.tokenizer, adds_special=False))

    def _explain(self, task: Task, contrast: torch.Tensor | None, at_once: int) -> Any:
        names = [name for name, _ in self._layers]
        checks.check_inputs(self.forward_func, task.inputs)
        passed = run(
            self.forward_func,
            task.inputs,
            (),
            [Site(module, False) for _, module in self._layers],
            Request(
                table=TABLE,
                rules=self._options.rules,
                scored=task.head,
                on_unknown=self._options.on_unknown,
                with_shares=True,
            ),
        )
        chosen = [chosen_tap(passed, site, name, None) for site, name in enumerate(names)]
        selected = self._select(passed, task, contrast, chosen)
        _, deltas = self._contributions(
            passed,
            selected,
            chosen,
            [f"layer {name}" for name in names],
            with_delta=True,
            keep_graph=True,
            grad_kwargs=None,
        )
        length = task.inputs[0].shape[1]
        sums = [_sum_of_features(length, name) for name in names]
        found = contributions_by_score(passed, selected.values, chosen, at_once, sums)
        results = [
            self._result(task, selected, passed, contrast, name, torch.stack(parts).sum(0), delta)
            for name, parts, delta in zip(names, found, deltas, strict=True)
        ]
        return results if self._several else results[0]

    def _select(
        self, passed: Forward, task: Task, contrast: torch.Tensor | None, chosen: Sequence[int]
    ) -> SelectedScores:
        """The score of each output, as one of a batch of scores."""
        selected = select_passed(passed, task.outputs.tolist(), self._options.score, chosen)
        if contrast is None:
            return selected
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
        contributions: torch.Tensor,
        delta: torch.Tensor,
    ) -> SequenceContributions:
        scores = selected.values.detach().to(contributions.dtype)
        if self._options.normalize is not None:
            divisor = scores if self._options.normalize == "score" else scores.abs()
        else:
            divisor = torch.ones_like(scores)
        contributions = contributions / divisor[:, None]
        delta = delta.to(contributions.dtype)
        constants = (scores - selected.constants) / divisor - contributions.sum(1) - delta
        segments, start = {}, 0
        for name, segment in task.segments.items():
            segments[name] = slice(start, start + len(segment.ids))
            start += len(segment.ids)
        ids = torch.cat([segment.ids for segment in task.segments.values()])
        columns = torch.zeros(len(scores), start, dtype=contributions.dtype)
        columns[:, : contributions.shape[1]] = contributions.cpu()
        logits = passed.output.detach().to(torch.promote_types(passed.output.dtype, torch.float32))
        probabilities = logits.softmax(1).gather(1, task.outputs[:, None])[:, 0]
        compared = [] if contrast is None else spelled(contrast, self.tokenizer)
        return SequenceContributions(
            contributions=columns,
            scores=scores.cpu(),
            probabilities=probabilities.cpu(),
            constants=constants.cpu(),
            unexplained=delta.cpu(),
            tokens=spelled(ids, self.tokenizer),
            token_ids=ids.cpu(),
            output_tokens=spelled(task.outputs, self.tokenizer),
            output_ids=task.outputs.cpu(),
            segments=segments,
            is_special=are_special(ids, self.tokenizer),
            layer=layer.strip("'"),
            normalize=self._options.normalize,
            contrast_tokens=[compared] * len(scores) if compared else [],
            tokenizer=self.tokenizer,
        )


def _embedding_of(model: Any) -> torch.nn.Module:
    """The module that takes the indices of tokens."""
    if hasattr(model, "get_input_embeddings"):
        return model.get_input_embeddings()  # type: ignore[no-any-return]
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    found = [module for module in modules if isinstance(module, torch.nn.Embedding)]
    if len(found) != 1:
        raise LayerError(
            f"the model has {len(found)} embeddings; expected one that takes the tokens. Pass it as layer."
        )
    return found[0]


def _sum_of_features(length: int, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that sums up contributions for each token.

    Args:
        length: the number of tokens.
        name: of the layer, for the message.

    Raises:
        LayerError: by the function, for a layer without a row for each token.
    """

    def sum_up(contributions: torch.Tensor) -> torch.Tensor:
        shape = contributions.shape[1:]
        dtype = torch.promote_types(contributions.dtype, torch.float32)
        if shape[:2] == (1, length):
            return contributions.reshape(len(contributions), length, -1).sum(2, dtype=dtype)
        raise LayerError(
            f"layer {name} gives a tensor of shape {tuple(shape)}; expected (1, {length}, ...), with a row for each "
            "token. Pick a layer whose output has the tokens in dimension 1."
        )

    return sum_up
