"""Linear operations: an input's contribution is its summand of the output (equations 1-4 and 9).

For ``y = W x + b`` the shares ``x_i w_ji / y_j`` chained by equation 5 are ``x * (W^T c_y)``: autograd's own gradient.
What a surrogate adds is the account of what does not carry: biases, and tensors that are merely added.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from captum_cav.propagation.marks import Origin, is_number, tensors_in
from captum_cav.propagation.operation import Operation, Surrogate
from captum_cav.propagation.surroundings import OwnFunction
from captum_cav.rules.product import product


def linear(operation: Operation) -> Any:
    """The operation itself: right wherever the output is linear in the carriers and nothing else adds to it."""
    return operation.value()


def additive(operation: Operation) -> Any:
    """Sums, joins and selections of several tensors, some of which may be constants.

    The constants' part is what the operation returns when every tensor that depends on the inputs is zero.
    """
    if not (operation.counts_constants and _has_constant(operation)):
        return operation.value()
    args = operation.without_inputs(operation.args)
    if operation.in_place and args[0] is operation.args[0]:
        args = (args[0].clone(), *args[1:])
    output = operation.value()
    part = operation.function(*args, **{key: operation.without_inputs(v) for key, v in operation.kwargs.items()})
    if output is None:  # x[i] = y
        operation.add_constant(operation.args[0], args[0])
    else:
        operation.add_constant(output, part)
    return output


def averaging(operation: Operation) -> Any:
    """Means, sums and average pooling, linear as they are; the activation before a global one may want to know."""
    x = operation.argument(0, "input")
    before = operation.origin_of(x)
    if isinstance(before, Poolable):
        dims = _pooled_dims(operation)
        if dims and 0 not in dims:
            return operation.on({id(x): _Noted.apply(x, before, dims)}).value()
    return operation.value()


class Poolable(Origin):
    """What an activation leaves for a global average pooling behind it."""

    def note(self, coefficients: torch.Tensor, dims: tuple[int, ...]) -> None:
        """Take note of the coefficients that come through a pooling over some dimensions."""
        raise NotImplementedError


class _Noted(OwnFunction):
    """Identity that tells an activation what came through the pooling behind it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, before: Poolable, dims: tuple[int, ...]) -> torch.Tensor:
        ctx.noted = before, dims
        return x.detach()

    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        before, dims = ctx.noted
        before.note(coefficients, dims)
        return coefficients, None, None


def _pooled_dims(operation: Operation) -> tuple[int, ...] | None:
    """The dimensions over which an operation averages all there is."""
    x = operation.argument(0, "input")
    if operation.name in ("mean", "sum"):
        dims = operation.argument(1, "dim")
        dims = (dims,) if isinstance(dims, int) else dims
        return None if dims is None else tuple(dim % x.dim() for dim in dims)
    spatial = int(next(digit for digit in operation.name if digit.isdigit()))
    sizes = operation.argument(1, "output_size" if "adaptive" in operation.name else "kernel_size")
    sizes = tuple(sizes) if isinstance(sizes, (tuple, list)) else (sizes,) * spatial
    if "adaptive" not in operation.name and operation.argument(3, "padding", 0) not in (0, (0,) * spatial):
        return None
    whole = (1,) * spatial if "adaptive" in operation.name else tuple(x.shape[-spatial:])
    return tuple(range(x.dim() - spatial, x.dim())) if sizes == whole else None


def _has_constant(operation: Operation) -> bool:
    arguments = [*operation.args, *operation.kwargs.values()]
    if any(is_number(tensor) and not operation.depends_on_inputs(tensor) for tensor in tensors_in(arguments)):
        return True
    operands = operation.args[:2] if operation.name in ("add", "sub", "rsub") else arguments
    return operation.name in _WITH_NUMBERS and any(isinstance(value, (int, float)) for value in operands)


def affine(operation: Operation) -> Any:
    """Convolution and linear layers: a product of input and weight, plus a bias with its own share."""
    bias = operation.argument(2, "bias")
    if bias is None:
        return product(operation)
    ones = [1] * _SPATIAL_DIMENSIONS.get(operation.name, 0)
    x, weight = operation.argument(0, "input"), operation.argument(1, "weight")
    if len(operation.sources) > 1:
        rest = {key: value for key, value in operation.kwargs.items() if key not in ("input", "weight", "bias")}
        return operation.inside(
            lambda: operation.function(x, weight, None, *operation.args[3:], **rest) + bias.reshape(-1, *ones)
        )
    output = operation.value()
    if not operation.depends_on_inputs(bias):
        operation.add_constant(output, bias.reshape(-1, *ones))
    return output


def broadcast(operation: Operation) -> Any:
    """``broadcast_tensors``, written out: each tensor is expanded by itself, and stays what it is."""
    tensors = tensors_in(list(operation.args))
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))  # type: ignore[no-untyped-call]
    return operation.inside(lambda: tuple(tensor.expand(shape) for tensor in tensors))


def time_first_convolution(operation: Operation) -> Any:
    """``conv_tbc``: a convolution of (time, batch, channels), written out in one of (batch, channels, time)."""
    x, weight, bias, padding = (
        operation.argument(place, name, 0) for place, name in enumerate(("input", "weight", "bias", "pad"))
    )
    return operation.inside(
        lambda: F.conv1d(x.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=padding).permute(2, 0, 1)
    )


def bilinear(operation: Operation) -> Any:
    """``torch.nn.Bilinear``: a product of three factors, plus a bias."""
    x1, x2, weight, bias = (
        operation.argument(position, name) for position, name in enumerate(("input1", "input2", "weight", "bias"))
    )
    if bias is None:
        return product(operation)
    return operation.inside(lambda: F.bilinear(x1, x2, weight) + bias)


def addmm(operation: Operation) -> Any:
    """``beta * input + alpha * (a @ b)`` and its batched kin, written out."""
    added, a, b = (operation.argument(i, name) for i, name in enumerate(_ADDED_PRODUCTS[operation.name]))
    beta, alpha = operation.kwargs.get("beta", 1), operation.kwargs.get("alpha", 1)

    def multiplied() -> torch.Tensor:
        if operation.name == "addr":
            return torch.outer(a, b)
        products = torch.matmul(a, b)
        return products.sum(0) if operation.name == "addbmm" else products

    return operation.inside(lambda: added * beta + multiplied() * alpha)


def addcmul(operation: Operation) -> Any:
    """``input + value * a * b`` or, for addcdiv, ``input + value * a / b``, written out."""
    added, a, b = (operation.argument(i, name) for i, name in enumerate(("input", "tensor1", "tensor2")))
    value = operation.kwargs.get("value", 1)
    return operation.inside(lambda: added + value * (a * b if operation.name == "addcmul" else a / b))


def lerp(operation: Operation) -> Any:
    """``start + weight * (end - start)``, written out."""
    start, end, weight = (operation.argument(i, name) for i, name in enumerate(("input", "end", "weight")))
    return operation.inside(lambda: start + weight * (end - start))


_SPATIAL_DIMENSIONS = {
    "conv1d": 1,
    "conv2d": 2,
    "conv3d": 3,
    "conv_transpose1d": 1,
    "conv_transpose2d": 2,
    "conv_transpose3d": 3,
}
_WITH_NUMBERS = frozenset(
    """
    add sub rsub fill fill_diagonal where masked_fill index_fill setitem scatter pad constant_pad_nd
    """.split()
)
ADDMM_ARGUMENTS = {
    "addmm": ("input", "mat1", "mat2"),
    "addmv": ("input", "mat", "vec"),
    "baddbmm": ("input", "batch1", "batch2"),
}
_ADDED_PRODUCTS = {**ADDMM_ARGUMENTS, "addr": ("input", "vec1", "vec2"), "addbmm": ("input", "batch1", "batch2")}

# One carrier in, its elements out, perhaps scaled by fixed numbers: the gradient is the rule. Dropout is at rest here.
_LINEAR = """
    T H mT mH adjoint view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze permute transpose
    swapaxes swapdims movedim moveaxis t contiguous clone alias to type type_as float double half bfloat16 cpu cuda
    chunk split tensor_split split_with_sizes hsplit vsplit dsplit unbind getitem select narrow slice index_select
    gather take take_along_dim masked_select unfold fold im2col col2im expand expand_as broadcast_to
    repeat tile repeat_interleave roll flip fliplr flipud rot90 diagonal linalg_diagonal diag
    diagflat diag_embed tril triu as_strided as_tensor asarray atleast_1d atleast_2d atleast_3d meshgrid sum_to_size
    resize_as to_dense pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle nansum nanmean cumsum
    diff trace neg positive gradient trapezoid trapz cumulative_trapezoid interpolate upsample upsample_nearest
    upsample_bilinear affine_grid upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d
    upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d
    reflection_pad3d replication_pad1d replication_pad2d replication_pad3d max_unpool1d max_unpool2d max_unpool3d
    embedding _pack_padded_sequence _pad_packed_sequence retain_grad register_hook deg2rad rad2deg
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout native_dropout
""".split()
# Linear in the parts of complex numbers.
_COMPLEX = """
    real imag conj conj_physical resolve_conj resolve_neg view_as_complex view_as_real cfloat cdouble
    fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_hfft2 fft_ihfft2
    fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_hfftn fft_ihfftn fft_fftshift fft_ifftshift stft istft
""".split()
_AVERAGING = """
    sum mean avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    _adaptive_avg_pool2d _adaptive_avg_pool3d
""".split()
# Several tensors, any of which may be a constant.
_ADDITIVE = """
    add sub rsub fill fill_diagonal zero copy cat concat concatenate stack hstack vstack dstack column_stack row_stack
    where masked_fill masked_scatter index_put _unsafe_index_put index_add index_copy index_fill setitem put scatter
    scatter_add slice_scatter select_scatter diagonal_scatter as_strided_scatter pad constant_pad_nd block_diag complex
    cartesian_prod combinations
""".split()
# What torch itself treats as a constant of the forward pass.
_CONSTANT = """
    detach data zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty
    new_tensor
""".split()

RULES: dict[str, Surrogate] = {
    **dict.fromkeys([*_LINEAR, *_COMPLEX, *_CONSTANT], linear),
    **dict.fromkeys(_AVERAGING, averaging),
    **dict.fromkeys(_ADDITIVE, additive),
    **dict.fromkeys([*_SPATIAL_DIMENSIONS, "linear"], affine),
    **dict.fromkeys(_ADDED_PRODUCTS, addmm),
    **dict.fromkeys(("addcmul", "addcdiv"), addcmul),
    "bilinear": bilinear,
    "broadcast_tensors": broadcast,
    "conv_tbc": time_first_convolution,
    "lerp": lerp,
}
# A view, a scaled copy, a sum or a mixture of weights is a weight: attention heads that talk are attention still.
KEEPING_WEIGHTS = frozenset(
    [
        *_LINEAR,
        *_COMPLEX,
        *_AVERAGING,
        *_ADDITIVE,
        *_SPATIAL_DIMENSIONS,
        *_ADDED_PRODUCTS,
        *("linear", "bilinear", "lerp"),
    ]
)
#: The first argument's numbers in the type or shape of another tensor.
SHAPED_LIKE = frozenset("to type_as view_as expand_as reshape_as resize_as".split())
IDENTITIES = frozenset("dropout dropout1d dropout2d dropout3d contiguous alias".split())
NONNEGATIVE_TOGETHER = frozenset("add mul cat concat concatenate stack hstack vstack".split())
# Neither signs nor weights of either sign: bicubic interpolation has them.
_SIGNED = frozenset("neg diff interpolate upsample alpha_dropout feature_alpha_dropout as_strided".split())
KEEPING_NONNEGATIVE = (frozenset([*_LINEAR, *_AVERAGING]) - _SIGNED) | NONNEGATIVE_TOGETHER
