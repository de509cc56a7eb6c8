"""Functions of torch that are no operations: they read a property of a tensor, set one, or take derivatives."""

from __future__ import annotations

import torch

from captum_cav.operations.table import TABLE
from captum_cav.propagation.kinds import Role
from captum_cav.propagation.operation import Operation, OperationSpec


def _no_computation(role: Role) -> OperationSpec:
    return OperationSpec(rule=Operation.gradient, role=role)


TABLE.register(
    """
    shape device dtype ndim layout requires_grad grad is_leaf is_cuda is_cpu is_meta is_mps is_xpu is_sparse
    is_quantized is_nested output_nr names itemsize nbytes _version _base size dim numel nelement ndimension stride
    storage_offset is_contiguous is_floating_point is_complex is_signed is_inference is_pinned is_set_to is_shared
    is_same_size element_size data_ptr untyped_storage storage get_device type_dtype __len__ __hash__ __repr__
    __format__ __dir__ _is_view is_tensor is_nonzero dense_dim sparse_dim has_names is_distributed is_conj is_neg
    can_cast result_type promote_types
    """,
    _no_computation(Role.ASKS),
)
TABLE.register("requires_grad_", _no_computation(Role.ASKS_FOR_GRADIENT))
TABLE.register("__set__", _no_computation(Role.SETS_ATTRIBUTE))
TABLE.register("register_hook register_post_accumulate_grad_hook", _no_computation(Role.REGISTERS_HOOK))
TABLE.register("grad_fn", _no_computation(Role.READS_NODE))
TABLE.register(torch.autograd.grad, _no_computation(Role.DIFFERENTIATES))
