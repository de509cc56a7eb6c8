"""Guards: an operation that acts at random or changes statistics in training mode is refused before it runs.

If a network drops units at random, its map is different at each call. Batch norm in training mode would change the
user's model.
"""

from __future__ import annotations

from captum_cav.errors import ModelError
from captum_cav.propagation.operation import Operation


def refuse(operation: Operation, what: str, how: str) -> None:
    """Refuse an operation.

    Args:
        operation: the operation.
        what: what the operation would do, for the message.
        how: how the user can prevent that, for the message.

    Raises:
        ModelError: always.
    """
    raise ModelError(f"{operation.name} would {what}{operation.where}; call model.eval() first, or {how}.")


def dropout(operation: Operation) -> None:
    """Dropout. In all its forms ``p`` and ``training`` are the arguments at positions 1 and 2."""
    training = operation.argument(2, "train" if "train" in operation.kwargs else "training", True)
    if training and operation.argument(1, "p", 0.5) > 0:
        refuse(operation, "act at random", "pass training=self.training to the function")


def rrelu(operation: Operation) -> None:
    """RReLU, which draws random slopes in training mode."""
    if operation.argument(3, "training", False):
        refuse(operation, "act at random", "pass training=self.training to the function")


def attention(operation: Operation) -> None:
    """Dropout of the weights of scaled dot-product attention."""
    if operation.argument(4, "dropout_p", 0.0) > 0:
        _refuse_dropout(operation)


def multi_head_attention(operation: Operation) -> None:
    """Dropout of the weights of multi-head attention, in training only."""
    if operation.argument(10, "dropout_p", 0.0) > 0 and operation.argument(13, "training", True):
        _refuse_dropout(operation)


def _refuse_dropout(operation: Operation) -> None:
    refuse(operation, "drop at random", "pass dropout_p=0.0 outside training")


def recurrent(operation: Operation) -> None:
    """Dropout between recurrent layers. A packed sequence has one more argument, its batch sizes."""
    shift = 0 if isinstance(operation.args[3], bool) else 1
    layers, probability, training = operation.args[4 + shift : 7 + shift]
    if training and probability > 0 and layers > 1:
        refuse(operation, "drop at random between its layers", "build it with dropout=0")
