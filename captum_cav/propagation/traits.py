"""What can be known of a tensor's values from the operations that made the tensor."""

from __future__ import annotations

import enum


class Trait(enum.Flag):
    """Facts about a tensor that depends on the inputs.

    The row of an operation says which traits its output keeps and which it makes. While a forward pass runs, traits are
    plain integers: the operations of an enum cost more than the rest of a mark.
    """

    NONE = 0
    #: A sigmoid, a softmax or the like: the tensor weighs whatever it is multiplied with.
    GATE = enum.auto()
    #: No value is below 0, so that summands with positive weights are the positive summands.
    NONNEGATIVE = enum.auto()
    #: No layer with weights lies between the tensor and the inputs.
    BEFORE_FIRST_LAYER = enum.auto()
    #: No value is above 1 or below -1. Made by tanh or erf, the tensor is a gate once 1 is added.
    BOUNDED = enum.auto()
    #: A positive number was just added. Clipped between 0 and another number, the tensor is a hard sigmoid.
    SHIFTED_UP = enum.auto()
