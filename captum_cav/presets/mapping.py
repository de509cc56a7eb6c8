"""The mapping of rules that a preset is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from captum_cav.operations import TABLE
from captum_cav.propagation.kinds import Kind

#: Convolutions, and batch norms that are not folded into a convolution.
CONVOLUTIONS = TABLE.functions(Kind.CONVOLUTION)
#: Linear layers, and other products with a weight.
DENSE = TABLE.functions(Kind.DENSE)
#: Activations. A global average pooling may follow them.
ACTIVATIONS = TABLE.functions(Kind.ACTIVATION)


class Preset(dict[Any, Any]):
    """A mapping of rules. Its printed form lists the keys of each rule.

    ``preset | mapping`` gives a changed copy.

    Args:
        name: the name that is printed.
        groups: pairs of several keys and their common value: a rule or a list of rules.
        title: which preset this is and why, if :func:`captum_cav.presets.auto` chose the preset. Empty otherwise.
    """

    def __init__(self, name: str, *groups: tuple[Iterable[Any], Any], title: str = "") -> None:
        super().__init__({key: value for keys, value in groups for key in keys})
        self.name = name
        self.title = title

    def __or__(self, other: Mapping[Any, Any]) -> Preset:
        changed = Preset(f"{self.name}, changed")
        changed.update(self)
        changed.update(other)
        return changed

    def __repr__(self) -> str:
        by_rule: dict[str, list[str]] = {}
        for key, value in self.items():
            by_rule.setdefault(_printed_rules(value), []).append(_printed_key(key))
        lines = [f"  {', '.join(keys)}: {value}" for value, keys in by_rule.items()]
        return "\n".join([f"preset {self.title or self.name}", *(lines or ["  the defaults"])])


def _printed_rules(value: Any) -> str:
    return " else ".join(map(repr, value)) if isinstance(value, (list, tuple)) else repr(value)


def _printed_key(key: Any) -> str:
    if isinstance(key, str):
        return repr(key)
    if isinstance(key, (type, torch.nn.Module)):
        return key.__name__ if isinstance(key, type) else type(key).__name__
    return TABLE.name_of(key) or repr(key)
