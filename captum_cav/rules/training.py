"""What acts at random or changes statistics when a model trains is refused before it runs, wherever it stands.

A map of a network that drops units at random would be another network's map at the next call, and batch norm in
training mode would write into the user's model.
"""

from __future__ import annotations

from collections.abc import Callable

from captum_cav.errors import ModelError
from captum_cav.propagation.operation import Operation
from captum_cav.rules.normalization import statistics_and_affine

Guard = Callable[[Operation], None]


def _refuse(operation: Operation, what: str, how: str) -> None:
    raise ModelError(f"{operation.name} would {what}{operation.where}; call model.eval() first, or {how}.")


def dropout(operation: Operation) -> None:
    """Dropout of any kind: ``p`` and ``training`` stand at positions 1 and 2 in all its forms."""
    training = operation.argument(2, "train" if "train" in operation.kwargs else "training", True)
    if training and operation.argument(1, "p", 0.5) > 0:
        _refuse(operation, "act at random", "pass training=self.training to the function")


def rrelu(operation: Operation) -> None:
    """RReLU, which draws its slopes when it trains."""
    if operation.argument(3, "training", False):
        _refuse(operation, "act at random", "pass training=self.training to the function")


def statistics(operation: Operation) -> None:
    """Batch and instance norm that keep running statistics: the flag at position 5 makes them write."""
    flag = "training" if operation.name == "batch_norm" else "use_input_stats"
    writes = operation.argument(5, flag, flag == "use_input_stats")
    if writes and statistics_and_affine(operation)[1] is not None:
        _refuse(operation, "change its running statistics", f"pass {flag}=False to the function")


def attention(operation: Operation) -> None:
    """Dropout of attention weights."""
    if operation.name == "scaled_dot_product_attention":
        drops = operation.argument(4, "dropout_p", 0.0) > 0
    else:
        drops = operation.argument(10, "dropout_p", 0.0) > 0 and operation.argument(13, "training", True)
    if drops:
        _refuse(operation, "drop at random", "pass dropout_p=0.0 outside training")


def recurrent(operation: Operation) -> None:
    """Dropout between the layers of an LSTM, GRU or RNN; a packed sequence's batch sizes shift the arguments by one."""
    shift = 0 if isinstance(operation.args[3], bool) else 1
    layers, probability, training = operation.args[4 + shift : 7 + shift]
    if training and probability > 0 and layers > 1:
        _refuse(operation, "drop at random between its layers", "build it with dropout=0")


_DROPOUTS = """
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout native_dropout
""".split()
_RECURRENT = "lstm gru rnn_tanh rnn_relu".split()

GUARDS: dict[str, Guard] = {
    **dict.fromkeys(_DROPOUTS, dropout),
    "rrelu": rrelu,
    **dict.fromkeys(("batch_norm", "instance_norm"), statistics),
    **dict.fromkeys(("scaled_dot_product_attention", "multi_head_attention_forward"), attention),
    **dict.fromkeys(_RECURRENT, recurrent),
}
