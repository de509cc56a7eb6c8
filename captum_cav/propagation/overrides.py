"""The user's rules, and which of them an operation gets: the most specific rule wins.

The order is: the instance of a module, then a name pattern, then the type of a module, then a torch function, then the
default. Among modules that enclose an operation the innermost one wins. Among patterns an exact name wins, and then the
longest pattern. Among types the nearest one wins.
"""

from __future__ import annotations

import functools
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

#: Translates a rule object of another library into a rule. Returns None for any other object.
Translator: TypeAlias = Callable[[object], Rule | None]


class Candidate(NamedTuple):
    """Rules for the operations inside a module.

    Attributes:
        rank: the kind of the key, the depth of the module, and how specific the key is. The greatest rank wins.
        rules: the rules. An operation gets the first rule that governs it.
        why: the key that chose the rules, as ``explain_rules`` prints it.
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
        table: the table of operations, which knows the plain names of torch functions.
        translate: translates rule objects of another library into rules.

    Raises:
        CAVTypeError: for a key or a rule of the wrong type.
        LayerError: for a pattern that matches no module, or a module of another model.
        OptionError: for a torch function that its rule does not govern.
    """

    def __init__(
        self, rules: Mapping[Any, Any], forward_func: Callable[..., Any], table: OperationTable, translate: Translator
    ) -> None:
        # The table is not stored, so that a copy of an attribution does not copy the table.
        #: The name of the preset; "of yours" for other rules.
        self.name: str = getattr(rules, "name", "of yours" if rules else "paper")
        #: Which preset the name ``"auto"`` stands for, and why. Empty for other rules.
        self.title: str = getattr(rules, "title", "")
        self._translate = translate
        self._instances: dict[torch.nn.Module, tuple[Rule, ...]] = {}
        self._patterns: dict[str, tuple[Rule, ...]] = {}
        self._types: dict[type, tuple[Rule, ...]] = {}
        self._functions: dict[Any, tuple[Rule, ...]] = {}
        for key, value in rules.items():
            chosen = tuple(self._as_rules(value, f"the rule of {key!r}"))
            if isinstance(key, torch.nn.Module):
                _check_instance(key, forward_func)
                self._instances[key] = chosen
            elif isinstance(key, str):
                _check_pattern(key, forward_func)
                self._patterns[key] = chosen
            elif isinstance(key, type) and issubclass(key, torch.nn.Module):
                self._types[key] = chosen
            elif callable(key) and not isinstance(key, type):
                name = table.name_of(key)
                _check_function(chosen, name, key)
                self._functions[name or key] = chosen
            else:
                raise CAVTypeError(
                    f"rules has the key {key!r} ({type(key).__name__}); expected a module, a qualified name or pattern "
                    'as "features.*", a type of module as torch.nn.Linear, or a torch function as torch.relu.'
                )

    def given(self, forward_func: Callable[..., Any]) -> dict[str, tuple[Rule, ...]]:
        """The rules by the names of their keys, with the rules that are attached to modules.

        Args:
            forward_func: the model, in which modules have their names.
        """
        named = dict(forward_func.named_modules()) if isinstance(forward_func, torch.nn.Module) else {}
        names = {module: name for name, module in named.items()}
        found = {f"module {names.get(module, type(module).__name__)!r}": one for module, one in self._instances.items()}
        found.update({repr(pattern): one for pattern, one in self._patterns.items()})
        found.update({f"type {kind.__module__}.{kind.__qualname__}": one for kind, one in self._types.items()})
        found.update({f"function {getattr(key, '__name__', key)}": one for key, one in self._functions.items()})
        for name, module in named.items():
            attached = self._attached(module)
            if attached is not None:
                found[f"attribute rule of {name!r}"] = tuple(self._as_rules(attached, "rule"))
        return found

    @property
    def are_for_functions(self) -> bool:
        """Whether any rule is for a torch function."""
        return bool(self._functions)

    def of_function(self, key: Any) -> tuple[Rule, ...]:
        """The rules for a torch function.

        Args:
            key: the plain name of the function, or the function itself if it has no plain name.
        """
        return self._functions.get(key, ())

    def choose(self, operation: Operation, key: Any, candidates: Sequence[Candidate]) -> tuple[Rule, str] | None:
        """The user's rule for an operation, and the key that chose it. None if the operation has its default rule.

        Args:
            operation: the operation.
            key: see :meth:`of_function`.
            candidates: the rules for operations in the enclosing modules, best first.
        """
        for candidate in candidates:
            for rule in candidate.rules:
                if not rule.as_one and rule.governs(operation):
                    return rule, candidate.why
        for rule in self.of_function(key):
            if rule.governs(operation):
                return rule, f"function {operation.name}"
        return None

    def check_model(self, forward_func: Callable[..., Any]) -> None:
        """Check that each key for modules fits another model, too.

        Raises:
            LayerError: for a pattern that matches no module, or a module of another model.
        """
        for module in self._instances:
            _check_instance(module, forward_func)
        for pattern in self._patterns:
            _check_pattern(pattern, forward_func)

    def may_be_for(self, module: torch.nn.Module) -> bool:
        """Whether there may be a rule for a module."""
        return bool(self._instances or self._patterns or self._types) or self._attached(module) is not None

    def is_one_operation(self, module: torch.nn.Module, names: Sequence[str]) -> bool:
        """Whether a rule for a module treats the whole call of the module as one operation.

        Args:
            module: the module.
            names: its qualified names in the model.
        """
        candidates = self.of_module(module, names, 0) if self.may_be_for(module) else []
        return any(rule.as_one for candidate in candidates for rule in candidate.rules)

    def of_module(self, module: torch.nn.Module, names: Sequence[str], depth: int) -> list[Candidate]:
        """The rules for operations in a module, best first.

        Args:
            module: a module that the forward pass enters.
            names: its qualified names in the model.
            depth: how many modules enclose it.
        """
        candidates = []
        if module in self._instances:
            candidates.append(Candidate((_INSTANCE, depth, 1), self._instances[module], "this module"))
        attached = self._attached(module)
        if attached is not None:
            name = repr(names[0]) if names else type(module).__name__
            what = f"the attribute rule of module {name} (rename the attribute if it means something else)"
            candidates.append(Candidate((_INSTANCE, depth, 0), tuple(self._as_rules(attached, what)), "module.rule"))
        for number, (pattern, rules) in enumerate(self._patterns.items()):
            if any(fnmatchcase(name, pattern) for name in names):
                literal = sum(character not in "*?" for character in pattern)
                # Of two patterns of the same length the later one wins.
                specific = float("inf") if pattern in names else literal + number / (len(self._patterns) + 1)
                candidates.append(Candidate((_PATTERN, depth, specific), rules, repr(pattern)))
        lineage = type(module).__mro__
        for kind, rules in self._types.items():
            if kind in lineage:
                candidates.append(Candidate((_TYPE, depth, -lineage.index(kind)), rules, f"type {kind.__name__}"))
        return sorted(candidates, key=lambda candidate: candidate.rank, reverse=True)

    def _attached(self, module: torch.nn.Module) -> Any:
        """The attribute ``rule`` of a module or of its class, as Captum's LRP has it. None if there is no such rule."""
        value = module.__dict__.get("rule")
        if value is not None:
            return None if isinstance(value, str) else value  # A text means something else.
        if not _may_keep_elsewhere(type(module)):  # type: ignore[arg-type]
            return None
        # A traced module keeps its attributes elsewhere.
        value = getattr(module if isinstance(module, torch.jit.ScriptModule) else type(module), "rule", None)
        # A method, a property or a submodule of this name means something else.
        is_rule = isinstance(value, (Rule, list, tuple)) or (value is not None and self._translate(value) is not None)
        return value if is_rule else None

    def _as_rules(self, value: Any, name: str) -> Iterator[Rule]:
        """The rules that a value of the user stands for: a rule, a rule object, a function or a list.

        Args:
            value: the value.
            name: what the value is, for messages.
        """
        if isinstance(value, (list, tuple)):
            for item in value:
                yield from self._as_rules(item, name)
            return
        translated = value if isinstance(value, Rule) else self._translate(value)
        if translated is not None:
            yield translated
        elif callable(value) and not isinstance(value, (type, torch.nn.Module)):
            yield FunctionRule(value)
        else:
            what = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
            raise CAVTypeError(
                f"{name} is {what}; expected a rule as rules.GammaRule(0.25), a list of rules, or a "
                "function of a rules.Operation as rules.pass_through."
            )


@functools.cache
def _may_keep_elsewhere(kind: Any) -> bool:
    """Whether modules of a type may have an attribute ``rule`` that is not in their own dictionary."""
    return issubclass(kind, torch.jit.ScriptModule) or getattr(kind, "rule", None) is not None


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
    governed = [rule.operations for rule in rules]
    if all(operations is not None and name not in operations for operations in governed):
        known = sorted(set().union(*(operations or () for operations in governed)))
        raise OptionError(
            f"{' and '.join(map(repr, rules))} is not for {name or key!r}; it is for {', '.join(known)}. Use a rule "
            "for this function, or write a function as a rule."
        )
