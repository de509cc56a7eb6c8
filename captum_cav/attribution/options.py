"""The options that all attributions share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from captum_cav import checks, presets
from captum_cav.attribution.scores import SCORES, Score, ScoreName
from captum_cav.errors import CAVTypeError
from captum_cav.operations import TABLE
from captum_cav.propagation.overrides import Rulebook
from captum_cav.rules.captum_rules import translate
from captum_cav.scores.running import ScoreFunction, check_score, run_scored
from captum_cav.torch_internals import modules_of

Normalize: TypeAlias = Literal["score", "abs"] | None
OnUnknown: TypeAlias = Literal["error", "gradient"]
#: The part of what a model returns: its name, its position in a tuple, or a function of what the model returns.
Output: TypeAlias = str | int | Callable[[Any], Any] | None
Rules: TypeAlias = Mapping[Any, Any] | str | None


class Options(NamedTuple):
    """Checked options of an attribution.

    Attributes:
        rules: the rules of the user, which take precedence over the defaults.
        normalize: what contributions are divided by: ``"score"``, ``"abs"`` (the absolute score), or None for nothing.
        on_unknown: what happens at an operation without a rule: ``"error"`` or ``"gradient"``.
        score: which number of the output is explained.
        function: a function of what the model returns, whose result counts as the output; None for the output itself.
        part: which part of what the model returns counts as its output; None for all of it.
        multiply_by_inputs: whether to give contributions ``x * c``. Otherwise the coefficients ``c`` are given.
    """

    rules: Rulebook
    normalize: Normalize
    on_unknown: OnUnknown
    score: ScoreName
    function: ScoreFunction | None = None
    multiply_by_inputs: bool = True
    part: Output = None

    def scored(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """A function that calls a model and gives what counts as its output."""
        if self.part is not None:
            model = functools.partial(_run_part, model, self.part)
        return model if self.function is None else functools.partial(run_scored, model, self.function)


def _run_part(model: Callable[..., Any], part: Output, *args: Any) -> Any:
    return checks.picked(model(*args), part)


def check_options(
    forward_func: Callable[..., Any],
    rules: Rules,
    normalize: Normalize = "score",
    on_unknown: OnUnknown = "error",
    score: Score = "output",
    multiply_by_inputs: bool = True,
    output: Output = None,
) -> Options:
    """The options as an attribution uses them.

    Args:
        forward_func: the model, in which the keys of ``rules`` are looked up.
        rules, normalize, on_unknown, score: as for :class:`captum_cav.LayerCAV`.
        multiply_by_inputs, output: as for :class:`captum_cav.LayerCAV`.

    Raises:
        OptionError, CAVTypeError, LayerError: for options that cannot be used.
        CAVTypeError: for a module whose attribute ``rule`` is the name of a preset.
        ModelError: for scripted modules that no rule treats as one operation.
    """
    checks.check_option("normalize", normalize, ("score", "abs", None))
    checks.check_option("on_unknown", on_unknown, ("error", "gradient"))
    checks.check_part(output)
    checks.check_flag("multiply_by_inputs", multiply_by_inputs)
    function: ScoreFunction | None = None
    if callable(score):
        check_score(score)
        function, score = score, "output"
    checks.check_option("score", score, SCORES)
    _check_attached_texts(forward_func)
    book = Rulebook(presets.find(rules, forward_func), forward_func, TABLE, translate)
    checks.check_scripted(forward_func, lambda module, name: book.is_one_operation(module, [name]))
    return Options(book, normalize, on_unknown, score, function, multiply_by_inputs, output)


def _check_attached_texts(forward_func: Callable[..., Any]) -> None:
    """Refuse the name of a preset in the attribute ``rule`` of a module. Other texts there mean something else.

    Raises:
        CAVTypeError: names the module.
    """
    for module in modules_of(forward_func):
        value = vars(module).get("rule")
        if isinstance(value, str) and value in (*presets.PRESETS, presets.AUTO):
            assert isinstance(forward_func, torch.nn.Module)
            name = next(name for name, one in forward_func.named_modules() if one is module)
            raise CAVTypeError(
                f"the attribute rule of module {name!r} is {value!r}, the name of a preset, which is for whole models; "
                "expected a rule as rules.GammaRule(0.25). If the attribute means something else, rename it."
            )
