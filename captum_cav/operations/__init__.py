"""The table of operations: one row for each torch function, with its default rule and all else that is known of it.

To add an operation, add its row to the module of its family here. Add its oracle to
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
    losses,
    normalization,
    products,
    quantized,
    recurrent,
    sampling,
    selection,
    structure,
    sums,
    tensor_attributes,
)
from captum_cav.operations.table import TABLE

# The import of these modules fills the table.
__all__ = [
    "TABLE",
    "activations",
    "affine",
    "attention",
    "dropout",
    "exported",
    "linearised",
    "losses",
    "normalization",
    "products",
    "quantized",
    "recurrent",
    "sampling",
    "selection",
    "structure",
    "sums",
    "tensor_attributes",
]
