"""Operations that are linear in one tensor: they move, pick, repeat or mix its elements.

For ``y = W x`` the shares ``x_i w_ji / y_j``, chained by equation 5, are ``x * (W^T c_y)``, which is autograd's own
gradient.
"""

from __future__ import annotations

from typing import Any

import torch

from captum_cav.operations import written_activations, written_out
from captum_cav.operations.pooled import hand_on
from captum_cav.operations.table import TABLE
from captum_cav.propagation.kinds import Derivative
from captum_cav.propagation.operation import Operation, OperationSpec
from captum_cav.propagation.traits import FACTOR, Trait
from captum_cav.tensors import tensors_in


def linear(operation: Operation) -> Any:
    """The operation with its own gradient: for operations that are linear in the carriers and add nothing else.

    Args:
        operation: a linear operation.

    Returns:
        The operation's value, which is its own surrogate.

    Source: Kakishita and Hattori, equations 1-5.

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV, rules
        >>> InputCAV(torch.sum, rules={torch.sum: rules.linear}).attribute(torch.tensor([1., 3.]))
        tensor([0.2500, 0.7500])
    """
    hand_on(operation, operation.argument(0, "input"))
    return operation.value()


def broadcast(operation: Operation) -> Any:
    """``broadcast_tensors``, decomposed: each tensor is expanded separately, so that a constant stays a constant."""
    tensors = tensors_in(list(operation.args))
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))  # type: ignore[no-untyped-call]
    return operation.decompose(lambda: tuple(tensor.expand(shape) for tensor in tensors))


def _linear(keeps: Trait, **more: Any) -> OperationSpec:
    return OperationSpec(rule=linear, is_as_is=True, derivative=Derivative.ALWAYS, keeps=keeps, **more)


#: The traits of a tensor that a view or a selection of its elements keeps.
KEPT = FACTOR | Trait.ACTIVATED | Trait.NONNEGATIVE

# The elements of one tensor, perhaps scaled by fixed positive numbers.
TABLE.register(
    """
    chunk|unsafe_chunk split|unsafe_split|split_copy tensor_split
    split_with_sizes|unsafe_split_with_sizes|split_with_sizes_copy hsplit vsplit dsplit unbind|unbind_copy
    index_select gather take
    take_along_dim masked_select unfold|unfold_copy fold im2col col2im repeat tile
    repeat_interleave roll flip fliplr flipud rot90 diagonal|diagonal_copy linalg_diagonal diag diagflat diag_embed tril
    triu as_tensor asarray atleast_1d atleast_2d atleast_3d meshgrid sum_to_size to_dense pixel_shuffle pixel_unshuffle
    channel_shuffle native_channel_shuffle nansum nanmean cumsum trace positive gradient trapezoid trapz
    cumulative_trapezoid affine_grid|affine_grid_generator upsample_nearest upsample_bilinear upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d max_unpool1d max_unpool2d max_unpool3d embedding _pack_padded_sequence _pad_packed_sequence
    retain_grad deg2rad rad2deg
    """,
    _linear(KEPT),
)
# The same: views and selections, which a statistic or a squashed score may pass.
TABLE.register(
    """
    T H mT mH adjoint view|_unsafe_view|_reshape_alias|view_copy reshape flatten unflatten ravel squeeze|squeeze_copy
    unsqueeze|unsqueeze_copy permute|permute_copy transpose|transpose_copy swapaxes swapdims movedim moveaxis t|t_copy
    clone type float double half bfloat16 cpu cuda getitem|index|_unsafe_index select|select_copy narrow|narrow_copy
    slice|slice_copy expand|expand_copy broadcast_to
    """,
    _linear(KEPT, recognise=written_out.moved),
)
# The numbers come from the first tensor. The type or the shape comes from another tensor.
TABLE.register(
    "to|_to_copy type_as view_as expand_as reshape_as resize_as",
    _linear(KEPT, first_only=True, recognise=written_out.moved),
)
# The output may be negative although the input is not: differences, cubic interpolation, any part of the memory.
TABLE.register("neg|negative", _linear(FACTOR, recognise=written_activations.negative, starts_function=True))
TABLE.register("diff interpolate upsample as_strided|as_strided_copy", _linear(Trait.GATE))
# Linear in the parts of complex numbers.
TABLE.register(
    """
    real imag conj conj_physical resolve_conj resolve_neg view_as_complex|view_as_complex_copy
    view_as_real|view_as_real_copy cfloat cdouble fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2
    fft_ifft2 fft_rfft2 fft_irfft2 fft_hfft2 fft_ihfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_hfftn fft_ihfftn
    fft_fftshift fft_ifftshift stft istft
    """,
    _linear(Trait.GATE),
)
TABLE.register("contiguous alias|alias_copy", _linear(KEPT, hands_on=True, recognise=written_out.moved))
# Torch detaches the output of these functions, so it is a constant.
TABLE.register(
    """
    detach|detach_copy data zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full
    new_empty new_tensor
    """,
    _linear(Trait.NONE, gives_constants=True),
)
TABLE.register("broadcast_tensors", OperationSpec(rule=broadcast))
