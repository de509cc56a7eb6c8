"""A user's rules, and which of them is for an operation: the most specific rule wins.

The order is: the instance of a module, then a name pattern, then the type of a module, then a torch function, then the
default. Among modules that enclose an operation the innermost one wins. Among patterns an exact name wins, and then the
longest pattern. Among types the nearest one wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeAlias

import torch

from captum_cav.errors import CAVTypeError, LayerError, OptionError
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.rule import FunctionRule, Rule
from captum_cav.propagation.table import OperationTable
from captum_cav.suggestions import did_you_mean

_INSTANCE, _PATTERN, _TYPE = 3, 2, 1

#: Gives a rule object of another library as a rule; None for whatever is no such object.
Translator: TypeAlias = Callable[[object], Rule | None]


class Candidate(NamedTuple):
    """Rules for what runs inside a module.

    Attributes:
        rank: kind of the key, depth of the module, and how specific the key is for the module; the greatest rank wins.
        rules: the rules. The first rule that governs an operation rules the operation.
        why: the key, for people.
    """

    rank: tuple[int, int, float]
    rules: tuple[Rule, ...]
    why: str


class Rulebook:
    """Rules by module instance, name pattern, module type and torch function, checked against a model.

    Args:
        rules: the mapping that a user gave. Values are rules, rule objects that ``translate`` knows, functions, or
            sequences of these.
        forward_func: the model, or any callable.
        table: the table of operations, in which plain names are looked up.
        translate: gives the rule objects of another library as rules.

    Raises:
        CAVTypeError: for a key or a rule whose type does not fit.
        LayerError: for a pattern that matches no module, or a module of another model.
        OptionError: for a torch function that its rule is not for.
    """

    def __init__(
        self, rules: Mapping[Any, Any], forward_func: Callable[..., Any], table: OperationTable, translate: Translator
    ) -> None:
        # The table itself is not kept: copies of an attribution hold rules, not operations.
        self._translate = translate
        self._instances: dict[torch.nn.Module, tuple[Rule, ...]] = {}
        self._patterns: dict[str, tuple[Rule, ...]] = {}
        self._types: dict[type, tuple[Rule, ...]] = {}
        self._functions: dict[Any, tuple[Rule, ...]] = {}
        for key, value in rules.items():
            made = tuple(self._as_rules(value, key))
            if isinstance(key, torch.nn.Module):
                _check_instance(key, forward_func)
                self._instances[key] = made
            elif isinstance(key, str):
                _check_pattern(key, forward_func)
                self._patterns[key] = made
            elif isinstance(key, type) and issubclass(key, torch.nn.Module):
                self._types[key] = made
            elif callable(key) and not isinstance(key, type):
                name = table.name_of(key)
                _check_function(made, name, key)
                self._functions[name or key] = made
            else:
                raise CAVTypeError(
                    f"rules has the key {key!r} ({type(key).__name__}); expected a module, a qualified name or pattern "
                    'as "features.*", a type of module as torch.nn.Linear, or a torch function as torch.relu.'
                )

    def of_function(self, key: Any) -> tuple[Rule, ...]:
        """The rules for a torch function, by its plain name. A function without a plain name is the key itself."""
        return self._functions.get(key, ())

    def choose(self, operation: Operation, key: Any, candidates: Sequence[Candidate]) -> tuple[Rule, str] | None:
        """The user's rule for an operation, and why the rule was chosen; None for the default rule.

        Args:
            operation: the operation.
            key: as for :meth:`of_function`.
            candidates: rules for what runs in the modules that enclose the operation, best first.
        """
        for candidate in candidates:
            for rule in candidate.rules:
                if not rule.as_one and rule.governs(operation):
                    return rule, candidate.why
        for rule in self.of_function(key):
            if rule.governs(operation):
                return rule, f"function {operation.name}"
        return None

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
        if isinstance(own, Rule) or (own is not None and self._translate(own) is not None):
            found.append(Candidate((_INSTANCE, depth, 0), tuple(self._as_rules(own, module)), "module.rule"))
        for number, (pattern, rules) in enumerate(self._patterns.items()):
            if any(fnmatchcase(name, pattern) for name in names):
                literal = sum(character not in "*?" for character in pattern)
                # Of two patterns of the same length the later one wins.
                specific = float("inf") if pattern in names else literal + number / (len(self._patterns) + 1)
                found.append(Candidate((_PATTERN, depth, specific), rules, repr(pattern)))
        lineage = type(module).__mro__
        for kind, rules in self._types.items():
            if kind in lineage:
                found.append(Candidate((_TYPE, depth, -lineage.index(kind)), rules, f"type {kind.__name__}"))
        return sorted(found, key=lambda candidate: candidate.rank, reverse=True)

    def _as_rules(self, value: Any, key: Any) -> Iterator[Rule]:
        """A rule or several rules, in any of the forms in which a user may give them."""
        if isinstance(value, (list, tuple)):
            for one in value:
                yield from self._as_rules(one, key)
            return
        translated = value if isinstance(value, Rule) else self._translate(value)
        if translated is not None:
            yield translated
        elif callable(value) and not isinstance(value, (type, torch.nn.Module)):
            yield FunctionRule(value)
        else:
            what = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
            raise CAVTypeError(
                f"the rule of {key!r} is {what}; expected a rule as rules.GammaRule(0.25), a list of rules, or a "
                "function of a rules.Operation as rules.pass_through."
            )


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


def _check_function(rules: tuple[Rule, ...], name: str | None, key: Any) -> None:
    meant = [rule.operations for rule in rules]
    if all(operations is not None and name not in operations for operations in meant):
        known = sorted(set().union(*(operations or () for operations in meant)))
        raise OptionError(
            f"{' and '.join(map(repr, rules))} is not for {name or key!r}; it is for {', '.join(known)}. Use a rule "
            "that is, or a function of your own."
        )
