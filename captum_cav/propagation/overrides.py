"""A user's rules, and which of them is for an operation: the most specific wins.

Instance of a module, then name pattern, then type of module, then torch function, then the default. Among modules that
enclose an operation the innermost wins, among patterns an exact name and then the longest, among types the nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch

from captum_cav import _captum
from captum_cav.checks import did_you_mean
from captum_cav.errors import CAVTypeError, LayerError, OptionError
from captum_cav.propagation.operation import identify
from captum_cav.rules.rule import FunctionRule, Rule

_INSTANCE, _PATTERN, _TYPE = 3, 2, 1


class Candidate(NamedTuple):
    """Rules for what runs inside a module.

    Attributes:
        rank: kind of key, depth of the module and how specific the key is for it; the greatest wins.
        rules: the rules, the first that governs an operation rules it.
        why: the key, for people.
    """

    rank: tuple[int, int, float]
    rules: tuple[Rule, ...]
    why: str


class Rulebook:
    """Rules by module instance, name pattern, module type and torch function, checked against a model.

    Args:
        rules: the mapping that a user gave; values are rules, Captum's rules, functions or sequences of those.
        forward_func: the model, or any callable.

    Raises:
        CAVTypeError: for a key or a rule of a type that cannot be one.
        LayerError: for a pattern or a module that is not the model's.
        OptionError: for a torch function that its rule is not for.
    """

    def __init__(self, rules: Mapping[Any, Any], forward_func: Callable[..., Any]) -> None:
        self._instances: dict[torch.nn.Module, tuple[Rule, ...]] = {}
        self._patterns: dict[str, tuple[Rule, ...]] = {}
        self._types: dict[type, tuple[Rule, ...]] = {}
        self._functions: dict[Any, tuple[Rule, ...]] = {}
        for key, value in rules.items():
            made = tuple(_as_rules(value, key))
            if isinstance(key, torch.nn.Module):
                _check_instance(key, forward_func)
                self._instances[key] = made
            elif isinstance(key, str):
                _check_pattern(key, forward_func)
                self._patterns[key] = made
            elif isinstance(key, type) and issubclass(key, torch.nn.Module):
                self._types[key] = made
            elif callable(key) and not isinstance(key, type):
                name = identify(key).name
                _check_function(made, name, key)
                self._functions[name or key] = made
            else:
                raise CAVTypeError(
                    f"rules has the key {key!r} ({type(key).__name__}); expected a module, a qualified name or pattern "
                    'as "features.*", a type of module as torch.nn.Linear, or a torch function as torch.relu.'
                )

    def of_function(self, key: Any) -> tuple[Rule, ...]:
        """The rules given for a torch function, by its plain name, or by itself if it has none."""
        return self._functions.get(key, ())

    def may_be_for(self, module: torch.nn.Module) -> bool:
        """Whether any rule may be given for a module."""
        return bool(self._instances or self._patterns or self._types) or "rule" in module.__dict__

    def of_module(self, module: torch.nn.Module, names: Sequence[str], depth: int) -> list[Candidate]:
        """The rules given for a module, best first.

        Args:
            module: a module that the forward pass enters.
            names: its qualified names in the model.
            depth: how many modules enclose it.
        """
        found = []
        if module in self._instances:
            found.append(Candidate((_INSTANCE, depth, 1), self._instances[module], "this module"))
        own = module.__dict__.get("rule")
        if isinstance(own, Rule) or _captum.is_rule(own):
            found.append(Candidate((_INSTANCE, depth, 0), tuple(_as_rules(own, module)), "module.rule"))
        for number, (pattern, rules) in enumerate(self._patterns.items()):
            if any(fnmatchcase(name, pattern) for name in names):
                literal = sum(character not in "*?" for character in pattern)
                # Of two as long, the later.
                specific = float("inf") if pattern in names else literal + number / (len(self._patterns) + 1)
                found.append(Candidate((_PATTERN, depth, specific), rules, repr(pattern)))
        lineage = type(module).__mro__
        for kind, rules in self._types.items():
            if kind in lineage:
                found.append(Candidate((_TYPE, depth, -lineage.index(kind)), rules, f"type {kind.__name__}"))
        return sorted(found, key=lambda candidate: candidate.rank, reverse=True)


def _check_instance(module: torch.nn.Module, forward_func: Callable[..., Any]) -> None:
    if isinstance(forward_func, torch.nn.Module) and all(known is not module for known in forward_func.modules()):
        raise LayerError(
            f"rules names a module ({type(module).__name__}) that does not belong to this model "
            f"({type(forward_func).__name__}); take it from the same model object."
        )


def _check_pattern(pattern: str, forward_func: Callable[..., Any]) -> None:
    if not isinstance(forward_func, torch.nn.Module):
        raise LayerError(
            f"rules has the name pattern {pattern!r}, but forward_func is not a module to look it up in; use the "
            "module itself, its type or a torch function as the key."
        )
    names = [name for name, _ in forward_func.named_modules(remove_duplicate=False)]
    if not any(fnmatchcase(name, pattern) for name in names):
        raise LayerError(
            f"rules has the name pattern {pattern!r}, which matches no module{did_you_mean(pattern, names)}; see "
            "model.named_modules()."
        )


def _as_rules(value: Any, key: Any) -> Iterator[Rule]:
    """A rule, or several, in any of the forms in which a user may give it."""
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _as_rules(one, key)
    elif isinstance(value, Rule):
        yield value
    elif _captum.is_rule(value):
        yield _captum.translate_rule(value)
    elif callable(value) and not isinstance(value, (type, torch.nn.Module)):
        yield FunctionRule(value)
    else:
        what = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise CAVTypeError(
            f"the rule of {key!r} is {what}; expected a rule as rules.GammaRule(0.25), a list of rules, or a function "
            "of a rules.Operation as rules.pass_through."
        )


def _check_function(rules: tuple[Rule, ...], name: str | None, key: Any) -> None:
    meant = [rule.operations for rule in rules]
    if all(operations is not None and name not in operations for operations in meant):
        known = sorted(set().union(*(operations or () for operations in meant)))
        raise OptionError(
            f"{' and '.join(map(repr, rules))} is not for {name or key!r}; it is for {', '.join(known)}. Use a rule "
            "that is, or a function of your own."
        )
