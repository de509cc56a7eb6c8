"""Operations of exported graphs, decomposed into the functions from which torch made them.

``torch.export`` and ``make_fx`` lower a model to ``torch.ops.aten``. Most operations keep their names there. The
operations here have another name, and another order of arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn import functional as F

from captum_cav.operations.table import TABLE
from captum_cav.propagation.operation import Operation, OperationSpec, Surrogate


def convolution(operation: Operation) -> Any:
    """``aten.convolution``: one of the six convolutions."""
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = operation.args[:9]
    name = f"conv{'_transpose' * transposed}{weight.dim() - 2}d"
    options = {"output_padding": output_padding} if transposed else {}
    return operation.decompose(
        getattr(F, name), x, weight, bias, stride, padding, groups=groups, dilation=dilation, **options
    )


def _first_of(composite: Callable[..., Any]) -> Surrogate:
    """Rule of an operation with several results. Only the first carries. The others are statistics for training.

    Args:
        composite: computes the first result from the operation's arguments.
    """

    def rule(operation: Operation) -> Any:
        _, *statistics = operation.value()
        output = operation.decompose(composite, *operation.args, **operation.kwargs)
        return (output, *(statistic.detach() for statistic in statistics))

    rule.__name__ = composite.__name__
    return rule


def _layer_norm(x: Any, shape: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    return F.layer_norm(x, shape, weight, bias, epsilon)


def _group_norm(x: Any, weight: Any, bias: Any, _n: int, _c: int, _hxw: int, groups: int, epsilon: float) -> Any:
    return F.group_norm(x, groups, weight, bias, epsilon)


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, *options: Any) -> Any:
    # The options are training, momentum and epsilon. One of the operations has no option ``training``.
    training = options[0] if isinstance(options[0], bool) else False
    return F.batch_norm(x, mean, variance, weight, bias, training, 0.0, options[-1])


def _attention(query: Any, key: Any, value: Any, _dropout: float = 0.0, is_causal: bool = False, **options: Any) -> Any:
    options.pop("return_debug_mask", None)
    return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, **options)


TABLE.register("convolution _convolution", OperationSpec(rule=convolution))
TABLE.register("native_layer_norm", OperationSpec(rule=_first_of(_layer_norm)))
TABLE.register("native_group_norm", OperationSpec(rule=_first_of(_group_norm)))
TABLE.register(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training",
    OperationSpec(rule=_first_of(_batch_norm)),
)
TABLE.register(
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math",
    OperationSpec(rule=_first_of(_attention)),
)
