"""Operations on quantized numbers. Torch has no derivative of them.

Weights may be quantized: a linear layer has the rules of the same layer with weights of floating-point numbers. Numbers
that carry contributions may not be, unless a kernel quantizes them for its own product.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch.nn import functional as F

from captum_cav.operations.elementwise import limited
from captum_cav.operations.surrogates import with_backward
from captum_cav.operations.table import TABLE
from captum_cav.propagation import unknown
from captum_cav.propagation.operation import Operation, OperationSpec


def refused(operation: Operation) -> NoReturn:
    """Refuse an operation that makes or takes quantized numbers."""
    raise unknown.quantized(operation, operation.where)


def _linear(operation: Operation, x: torch.Tensor, weight: torch.Tensor, bias: Any, value: torch.Tensor) -> Any:
    """A linear layer with the value of a kernel. What the kernel rounds in another way is a constant.

    Args:
        operation: the kernel.
        x: the input of the layer.
        weight: shape (out, in), the weight as floating-point numbers.
        bias: None for none.
        value: what the kernel gives.
    """

    def layer() -> torch.Tensor:
        rows = x.reshape(*value.shape[:-1], x.shape[-1])
        output = F.linear(rows, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        if output.dtype != value.dtype:
            output = output.to(value.dtype)
        return output + (value - output.detach())

    return operation.decompose(layer)


def with_4_bits(operation: Operation) -> Any:
    """A linear layer whose weight is packed, four bits a number. The kernel gives the weight for unit vectors."""
    x, (rows, columns) = operation.argument(0, "A"), operation.argument(2, "shapeB")
    bias = operation.argument(6, "bias") if operation.name == "gemm_4bit" else None
    value = operation.plain_value()
    with torch.no_grad():
        units = torch.eye(columns, dtype=x.dtype, device=x.device)
        args = [None if given is bias and bias is not None else given for given in operation.args[1:]]
        kwargs = {name: None if name == "bias" else given for name, given in operation.kwargs.items()}
        # A kernel of vectors takes one row at a time.
        parts = torch.split(units, 1) if operation.name == "gemv_4bit" else (units,)
        weight = torch.cat([operation.function(part, *args, **kwargs) for part in parts]).T
    assert weight.shape == (rows, columns)
    return _linear(operation, x, weight, bias, value)


_ROWS = "_captum_cav_rows"


def rounded_rows(operation: Operation) -> Any:
    """Numbers that a kernel rounds to 8 bits for its own product, row by row. The product takes the numbers instead."""
    x = operation.argument(0, "A")
    whole, scale, *rest = operation.plain_value()

    def backward(coefficients: torch.Tensor) -> tuple[torch.Tensor]:
        if bool(coefficients.any()):  # Something else takes the scale.
            refused(operation)
        return (torch.zeros_like(x),)

    carrier = with_backward(scale, backward, x)
    setattr(carrier, _ROWS, x)
    return (whole, carrier, *rest)


def with_8_bits(operation: Operation) -> Any:
    """A linear layer with a weight of 8 bits, and a scale for each output."""
    mixed = operation.name == "int8_mixed_scaled_mm"
    names = (
        (("A", 0), ("CB", 2), ("SCB", 4), ("bias", 6))
        if mixed
        else (("row_stats", 2), ("B", 1), ("col_stats", 3), ("bias", 4))
    )
    x, weight, scale, bias = (operation.argument(position, name) for name, position in names)
    if not mixed:
        x = getattr(x, _ROWS, None)
        if x is None:
            refused(operation)
    value = operation.plain_value()
    output, others = (value[0], value[1:]) if mixed else (value, ())
    weight = weight.to(torch.float32) * (scale.unsqueeze(1) / 127)
    found = _linear(operation, x, weight, bias, output)
    return (found, *others) if mixed else found


TABLE.register("gemm_4bit gemv_4bit", OperationSpec(rule=with_4_bits))
TABLE.register("int8_vectorwise_quant", OperationSpec(rule=rounded_rows))
TABLE.register("int8_scaled_mm int8_mixed_scaled_mm", OperationSpec(rule=with_8_bits))
TABLE.register(
    "int8_double_quant int8_linear_matmul int8_mm_dequant quantize_4bit quantize_blockwise", OperationSpec(rule=refused)
)
TABLE.register(
    """
    quantize_per_tensor quantize_per_tensor_dynamic quantize_per_channel quantized_lstm quantized_gru
    quantized_lstm_cell quantized_gru_cell quantized_rnn_relu_cell quantized_rnn_tanh_cell fbgemm_linear_int8_weight
    fbgemm_linear_int8_weight_fp32_activation fbgemm_linear_fp16_weight fbgemm_linear_fp16_weight_fp32_activation
    _weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_for_cpu _weight_int4pack_mm_with_scales_and_zeros
    _dyn_quant_matmul_4bit _int_mm _scaled_mm _scaled_grouped_mm
    """,
    OperationSpec(rule=refused),
)
# These give rounded floating-point numbers. As in ``round``, a number gets the contribution of what it becomes.
TABLE.register("fake_quantize_per_tensor_affine fake_quantize_per_channel_affine", OperationSpec(rule=limited(0.0)))
