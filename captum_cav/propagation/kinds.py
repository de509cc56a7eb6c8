"""Kinds of operations, by which the table of operations tells them apart."""

from __future__ import annotations

import enum


class Role(enum.Enum):
    """What a torch function does."""

    COMPUTES = enum.auto()
    #: Reads a property of a tensor, such as its shape.
    ASKS = enum.auto()
    #: Lets a tensor require grad.
    ASKS_FOR_GRADIENT = enum.auto()
    #: Sets an attribute of a tensor.
    SETS_ATTRIBUTE = enum.auto()
    #: Registers a hook on a tensor's gradient.
    REGISTERS_HOOK = enum.auto()
    #: Reads the place of a tensor in the graph of autograd, where hooks can be registered too.
    READS_NODE = enum.auto()
    #: Takes derivatives.
    DIFFERENTIATES = enum.auto()


class Kind(enum.Flag):
    """Kinds of operations. Rules and presets choose operations by their kind."""

    NONE = 0
    #: A convolution, or a batch norm, which is a convolution of width 1.
    CONVOLUTION = enum.auto()
    #: A linear layer, or a product with a weight in any other form.
    DENSE = enum.auto()
    #: An activation between two layers.
    ACTIVATION = enum.auto()
    #: A normalisation.
    NORM = enum.auto()
    #: A choice among values: max pooling, sort, top-k.
    SELECTION = enum.auto()
    #: Max pooling over windows.
    MAX_POOLING = enum.auto()
    #: A product of two tensors.
    PRODUCT = enum.auto()
    #: A sum or difference of two tensors.
    SUM = enum.auto()
    #: A softmax, or the attention that is made of a softmax.
    ATTENTION = enum.auto()


class Derivative(enum.Enum):
    """When the default rule passes the operation's derivative on, so that contributions are gradient x activation."""

    NEVER = enum.auto()
    ALWAYS = enum.auto()
    #: Only if a single tensor depends on the inputs.
    OF_ONE_TENSOR = enum.auto()


class Numbers(enum.Enum):
    """What plain numbers among the arguments mean."""

    #: A number is a setting, such as a dimension or a size.
    SETTINGS = enum.auto()
    #: A number among the first two arguments is a constant, like a constant tensor.
    OPERANDS = enum.auto()
    #: Every number is a constant, like a constant tensor.
    VALUES = enum.auto()
