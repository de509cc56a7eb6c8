"""The modules that enclose the running operation, and the user's rules for operations in these modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from captum_cav.errors import ModelError
from captum_cav.propagation.overrides import Candidate, Rulebook
from captum_cav.propagation.rule import Rule
from captum_cav.torch_internals import acts_as_in_training, has_old_backward_hook, innermost_called


class ModuleStack:
    """The modules that the forward pass has entered and not left.

    Args:
        rules: the user's rules.
        names_of: gives the qualified names of a module.

    Attributes:
        modules: the modules, the innermost last. Empty if the forward pass is not followed module by module.
        candidates: the rules for operations in the innermost module, best first.
    """

    def __init__(self, rules: Rulebook, names_of: Callable[[torch.nn.Module], Sequence[str]]) -> None:
        self.modules: list[torch.nn.Module] = []
        self.candidates: list[Candidate] = []
        self.names_of = names_of
        self._rules = rules
        self._outer: list[list[Candidate]] = []
        # The user may call the attribution inside the call of another module, which is not part of the model.
        self._caller = innermost_called()

    @property
    def innermost(self) -> torch.nn.Module | None:
        """The module that was entered last."""
        return self.modules[-1] if self.modules else None

    def enter(self, module: torch.nn.Module) -> None:
        """Note that the call of a module begins.

        Raises:
            ModelError: for a module that would act at random or change itself, or that has an old backward hook.
        """
        if acts_as_in_training(module):
            raise ModelError(
                f"{self.describe(module)} is in training mode, where it acts at random or changes its statistics; "
                "call model.eval() first."
            )
        if has_old_backward_hook(module):
            raise ModelError(
                f"{self.describe(module)} has a hook by register_backward_hook, which torch attaches to operations "
                "inside it; use register_full_backward_hook, or remove the hook first."
            )
        candidates = self.candidates
        if self._rules.may_be_for(module):
            of_module = self._rules.of_module(module, self.names_of(module), len(self.modules))
            if of_module:
                candidates = sorted([*candidates, *of_module], key=lambda candidate: candidate.rank, reverse=True)
        self._outer.append(self.candidates)
        self.candidates = candidates
        self.modules.append(module)

    def leave(self) -> None:
        """Note that the call of the innermost module ends."""
        self.candidates = self._outer.pop()
        self.modules.pop()

    def rule_of_call(self) -> tuple[Rule, str] | None:
        """The rule that treats the call of the innermost module as one operation, and why. None if there is none."""
        depth = len(self.modules) - 1
        for candidate in self.candidates:
            for rule in candidate.rules if candidate.rank[1] == depth else ():
                if rule.as_one:
                    return rule, candidate.why
                if rule.operations is None:  # The rule is for every operation inside.
                    return None
        return None

    def where(self) -> str:
        """The innermost module, for messages: `` in module 'layer1' (Layer)``. Empty outside of modules."""
        module = self.innermost if self.modules else innermost_called()
        return "" if module is None or module is self._caller else f" in {self.describe(module)}"

    def describe_innermost(self) -> str:
        """The module that was entered last, for messages. Empty outside of modules."""
        return self.describe(self.modules[-1]) if self.modules else ""

    def describe(self, module: torch.nn.Module) -> str:
        """A module by name and type, for messages."""
        name = next(iter(self.names_of(module)), "")
        return f"module {name!r} ({type(module).__name__})" if name else f"the module {type(module).__name__}"

    def short_name(self, module: torch.nn.Module | None) -> str:
        """The qualified name of a module, or its type if it has no name. Empty for None."""
        return "" if module is None else next(iter(self.names_of(module)), "") or type(module).__name__
