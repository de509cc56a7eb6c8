"""Operations on quantized numbers, which carry no contributions: torch has no derivative of them."""

from __future__ import annotations

from typing import NoReturn

from captum_cav.operations.elementwise import limited
from captum_cav.operations.table import TABLE
from captum_cav.propagation import unknown
from captum_cav.propagation.operation import Operation, OperationSpec


def refused(operation: Operation) -> NoReturn:
    """Refuse an operation that makes or takes quantized numbers."""
    raise unknown.quantized(operation, operation.where)


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
