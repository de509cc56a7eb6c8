"""Traits: facts about the values of a tensor that follow from the operations that made it."""

from __future__ import annotations

import enum


class Trait(enum.Flag):
    """Facts about a tensor that depends on the inputs.

    The row of an operation says which traits its output keeps and which it makes. While a forward pass runs, traits are
    plain integers, because arithmetic with enum members is slow.
    """

    NONE = 0
    #: A gate, such as a sigmoid or a softmax: a factor that weighs the other factor of a product.
    GATE = enum.auto()
    #: The output of a softmax, which weighs the other factor of a product even if that factor is a gate.
    WEIGHTS = enum.auto()
    #: The reciprocal of a tensor. A product with it is a division, so it is a constant.
    RECIPROCAL = enum.auto()
    #: The output of an activation such as SiLU or GELU.
    ACTIVATED = enum.auto()
    #: No value is below 0, so that summands with positive weights are the positive summands.
    NONNEGATIVE = enum.auto()
    #: No layer with weights lies between the tensor and the inputs.
    BEFORE_FIRST_LAYER = enum.auto()
    #: The output of tanh or erf, between -1 and 1. Plus 1 it is a gate.
    BOUNDED = enum.auto()
    #: A positive number was just added. Clipped between 0 and another number, the tensor is a hard sigmoid, so a gate.
    SHIFTED_UP = enum.auto()
    #: Squashed by a sigmoid, a softmax or the like since the last tap, or computed from such numbers alone.
    SQUASHED = enum.auto()
    #: A positive number was added, and then the values were clipped from above.
    CAPPED = enum.auto()


#: What a tensor is as a factor of a product. A function that passes elements on, or puts constants in their place, such
#: as a clamp, keeps these traits.
FACTOR = Trait.GATE | Trait.WEIGHTS | Trait.RECIPROCAL
