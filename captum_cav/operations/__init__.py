"""What each torch function does by default: the table of operations, one row a function.

To add an operation, add its row to the module of its family here, and its oracle to
``benchmarks/coverage/operations.py``.
"""

from __future__ import annotations

from captum_cav.operations import (
    activations,
    affine,
    attention,
    dropout,
    exported,
    linearised,
    normalization,
    products,
    recurrent,
    sampling,
    selection,
    structure,
    sums,
    tensor_attributes,
)
from captum_cav.operations.table import TABLE

# The modules fill the table when they are imported.
__all__ = [
    "TABLE",
    "activations",
    "affine",
    "attention",
    "dropout",
    "exported",
    "linearised",
    "normalization",
    "products",
    "recurrent",
    "sampling",
    "selection",
    "structure",
    "sums",
    "tensor_attributes",
]
