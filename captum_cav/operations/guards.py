"""What acts at random or changes statistics when a model trains is refused before it runs, wherever it stands.

The map of a network that drops units at random would be another network's map at the next call. Batch norm in training
mode would write into the user's model.
"""

from __future__ import annotations

from captum_cav.errors import ModelError
from captum_cav.propagation.operation import Operation


def refuse(operation: Operation, what: str, how: str) -> None:
    """Refuse an operation: what it would do, and how to keep it from doing so."""
    raise ModelError(f"{operation.name} would {what}{operation.where}; call model.eval() first, or {how}.")


def dropout(operation: Operation) -> None:
    """Dropout of any kind: ``p`` and ``training`` stand at positions 1 and 2 in all its forms."""
    training = operation.argument(2, "train" if "train" in operation.kwargs else "training", True)
    if training and operation.argument(1, "p", 0.5) > 0:
        refuse(operation, "act at random", "pass training=self.training to the function")


def rrelu(operation: Operation) -> None:
    """RReLU, which draws its slopes when it trains."""
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
    """Dropout between recurrent layers. The batch sizes of a packed sequence shift the arguments by one."""
    shift = 0 if isinstance(operation.args[3], bool) else 1
    layers, probability, training = operation.args[4 + shift : 7 + shift]
    if training and probability > 0 and layers > 1:
        refuse(operation, "drop at random between its layers", "build it with dropout=0")
