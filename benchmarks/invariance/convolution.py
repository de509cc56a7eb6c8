"""Convolutions: by windows and matrix products, padding, groups, dimensions, transposed convolutions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.coverage.operations import fixed
from benchmarks.invariance.linear import _SAME_FOR_ALL
from benchmarks.invariance.pair import SUM_OF_LAYERS, Pair, family

_GROUP = "convolution"
_PICTURES = (2, 4, 5, 6)
_KERNEL, _BIAS = fixed(3, 4, 3, 3, seed=91), fixed(3, seed=92)
_DEPTHWISE, _DEPTHWISE_BIAS = fixed(4, 1, 3, 3, seed=93), fixed(4, seed=94)
_GROUPED = fixed(6, 2, 3, 3, seed=95)
_LINE = fixed(3, 4, 3, seed=96)
_POINT = fixed(3, 4, 1, 1, seed=97)
_TRANSPOSED = fixed(4, 3, 3, 3, seed=98)


def pairs() -> Iterator[Pair]:
    """All pairs of this group."""
    yield from _plain()
    yield from _grouped()
    yield from _of_other_dimensions()
    yield from _transposed()


def _conv(x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, _KERNEL, _BIAS, padding=1)


def _plain() -> Iterator[Pair]:
    bias = _BIAS.reshape(3, 1, 1)

    def module() -> nn.Module:
        layer = nn.Conv2d(4, 3, 3, padding=1).double()
        layer.weight.data, layer.bias.data = _KERNEL.clone(), _BIAS.clone()  # type: ignore[union-attr]
        return layer

    yield from family(
        _GROUP,
        "conv2d",
        _conv,
        {
            "padded before": lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1)), _KERNEL, _BIAS),
            "nn.ZeroPad2d": lambda x: F.conv2d(nn.ZeroPad2d(1)(x), _KERNEL, _BIAS),
            'padding="same"': lambda x: F.conv2d(x, _KERNEL, _BIAS, padding="same"),
            "padded by cat": lambda x: F.conv2d(
                torch.cat([z := x.new_zeros(2, 4, 5, 1), x, z], -1), _KERNEL, _BIAS, padding=(1, 0)
            ),
            "+ bias": lambda x: F.conv2d(x, _KERNEL, padding=1) + bias,
            "torch.conv2d": lambda x: torch.conv2d(x, _KERNEL, _BIAS, padding=1),
            "torch.convolution": lambda x: torch.convolution(
                x, _KERNEL, _BIAS, [1, 1], [1, 1], [1, 1], False, [0, 0], 1
            ),
            "nn.Conv2d": module(),
            "conv3d": lambda x: F.conv3d(x[:, :, None], _KERNEL[:, :, None], _BIAS, padding=(0, 1, 1))[:, :, 0],
            "sum over groups of channels": lambda x: (
                F.conv2d(x[:, :2], _KERNEL[:, :2], _BIAS, padding=1) + F.conv2d(x[:, 2:], _KERNEL[:, 2:], padding=1)
            ),
            "outputs by cat": lambda x: torch.cat(
                [F.conv2d(x, _KERNEL[:1], _BIAS[:1], padding=1), F.conv2d(x, _KERNEL[1:], _BIAS[1:], padding=1)], 1
            ),
            "transposed with a flipped kernel": lambda x: F.conv_transpose2d(
                x, _KERNEL.flip(2, 3).transpose(0, 1), _BIAS, padding=1
            ),
            "cropped": lambda x: F.conv2d(x, _KERNEL, _BIAS, padding=2)[:, :, 1:-1, 1:-1],
            "sample by sample": lambda x: torch.stack([F.conv2d(one, _KERNEL, _BIAS, padding=1) for one in x]),
            "channels last": lambda x: _conv(x.contiguous(memory_format=torch.channels_last)),
            "kernel of 5 x 5": lambda x: F.conv2d(x, F.pad(_KERNEL, (1, 1, 1, 1)), _BIAS, padding=2),
        },
        undecidable={"sum over groups of channels": SUM_OF_LAYERS},
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "conv2d by matrices",
        _conv,
        {
            "unfold, matmul": lambda x: (_KERNEL.flatten(1) @ F.unfold(x, 3, padding=1)).reshape(2, 3, 5, 6) + bias,
            "unfold, linear": lambda x: F.linear(F.unfold(x, 3, padding=1).mT, _KERNEL.flatten(1), _BIAS).mT.reshape(
                2, 3, 5, 6
            ),
            "Tensor.unfold, einsum": lambda x: (
                torch.einsum("nchwij,ocij->nohw", F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1), _KERNEL)
                + bias
            ),
            "sum of shifted products": lambda x: (
                sum(
                    torch.einsum("nchw,oc->nohw", F.pad(x, (1, 1, 1, 1))[..., i : i + 5, j : j + 6], _KERNEL[..., i, j])
                    for i in range(3)
                    for j in range(3)
                )
                + bias
            ),
        },
        undecidable={"sum of shifted products": SUM_OF_LAYERS},
        shape=_PICTURES,
        presets=_SAME_FOR_ALL,
    )
    yield from family(
        _GROUP,
        "conv2d without bias",
        lambda x: F.conv2d(x, _KERNEL, padding=1),
        {
            "unfold, matmul": lambda x: (_KERNEL.flatten(1) @ F.unfold(x, 3, padding=1)).reshape(2, 3, 5, 6),
            "einsum of unfold": lambda x: torch.einsum(
                "nkl,ok->nol", F.unfold(x, 3, padding=1), _KERNEL.flatten(1)
            ).reshape(2, 3, 5, 6),
        },
        shape=_PICTURES,
        presets=_SAME_FOR_ALL,
    )
    yield from family(
        _GROUP,
        "strided conv2d",
        lambda x: F.conv2d(x, _KERNEL, _BIAS, 2, 1),
        {
            "every second position": lambda x: _conv(x)[:, :, ::2, ::2],
            "padded before": lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1)), _KERNEL, _BIAS, 2),
        },
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "dilated conv2d",
        lambda x: F.conv2d(x, _KERNEL, _BIAS, padding=2, dilation=2),
        {"stuffed kernel": lambda x: F.conv2d(x, _stuffed(_KERNEL), _BIAS, padding=2)},
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "reflected padding",
        lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), _KERNEL, _BIAS),
        {
            "by cat": lambda x: F.conv2d(
                torch.cat([(y := torch.cat([x[:, :, 1:2], x, x[:, :, -2:-1]], 2))[..., 1:2], y, y[..., -2:-1]], 3),
                _KERNEL,
                _BIAS,
            ),
            "nn.ReflectionPad2d": lambda x: F.conv2d(nn.ReflectionPad2d(1)(x), _KERNEL, _BIAS),
        },
        shape=_PICTURES,
    )


def _stuffed(x: torch.Tensor) -> torch.Tensor:
    """A tensor with zeros between its numbers in the last two dimensions."""
    height, width = x.shape[-2:]
    stuffed = x.new_zeros(*x.shape[:-2], 2 * height - 1, 2 * width - 1)
    stuffed[..., ::2, ::2] = x
    return stuffed


def _grouped() -> Iterator[Pair]:
    yield from family(
        _GROUP,
        "depthwise",
        lambda x: F.conv2d(x, _DEPTHWISE, _DEPTHWISE_BIAS, padding=1, groups=4),
        {
            "channel by channel": lambda x: torch.cat(
                [
                    F.conv2d(x[:, i : i + 1], _DEPTHWISE[i : i + 1], _DEPTHWISE_BIAS[i : i + 1], padding=1)
                    for i in range(4)
                ],
                1,
            ),
            "one group, kernel of zeros": lambda x: F.conv2d(
                x, _DEPTHWISE * torch.eye(4, dtype=x.dtype)[..., None, None], _DEPTHWISE_BIAS, padding=1
            ),
        },
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "two groups",
        lambda x: F.conv2d(x, _GROUPED, padding=1, groups=2),
        {
            "cat": lambda x: torch.cat(
                [F.conv2d(x[:, :2], _GROUPED[:3], padding=1), F.conv2d(x[:, 2:], _GROUPED[3:], padding=1)], 1
            ),
            "chunk": lambda x: torch.cat(
                [
                    F.conv2d(part, kernel, padding=1)
                    for part, kernel in zip(x.chunk(2, 1), _GROUPED.chunk(2), strict=True)
                ],
                1,
            ),
        },
        shape=_PICTURES,
    )


def _of_other_dimensions() -> Iterator[Pair]:
    yield from family(
        _GROUP,
        "conv1d",
        lambda x: F.conv1d(x, _LINE, _BIAS, padding=1),
        {
            "conv2d": lambda x: F.conv2d(x[:, :, None], _LINE[:, :, None], _BIAS, padding=(0, 1))[:, :, 0],
            "conv_tbc": lambda x: torch.conv_tbc(
                x.permute(2, 0, 1).contiguous(), _LINE.permute(2, 1, 0).contiguous(), _BIAS, 1
            ).permute(1, 2, 0),
            "conv3d": lambda x: F.conv3d(x[:, :, None, None], _LINE[:, :, None, None], _BIAS, padding=(0, 0, 1))[
                :, :, 0, 0
            ],
        },
    )
    yield from family(
        _GROUP,
        "1x1 convolution",
        lambda x: F.conv2d(x, _POINT, _BIAS),
        {
            "linear": lambda x: F.linear(x.permute(0, 2, 3, 1), _POINT[..., 0, 0], _BIAS).permute(0, 3, 1, 2),
            "matmul": lambda x: (_POINT[..., 0, 0] @ x.flatten(2)).reshape(2, 3, 5, 6) + _BIAS.reshape(3, 1, 1),
            "einsum": lambda x: torch.einsum("nchw,oc->nohw", x, _POINT[..., 0, 0]) + _BIAS.reshape(3, 1, 1),
        },
        shape=_PICTURES,
        presets=_SAME_FOR_ALL,
    )
    patch = fixed(3, 4, 5, 3, seed=99)
    yield from family(
        _GROUP,
        "patches",
        lambda x: F.conv2d(x, patch, _BIAS, stride=(5, 3)).flatten(2).mT,
        {
            "linear of unfold": lambda x: F.linear(F.unfold(x, (5, 3), stride=(5, 3)).mT, patch.flatten(1), _BIAS),
            "linear of reshape": lambda x: F.linear(
                x.reshape(2, 4, 5, 2, 3).permute(0, 3, 1, 2, 4).flatten(2), patch.flatten(1), _BIAS
            ),
        },
        shape=_PICTURES,
        presets=_SAME_FOR_ALL,
    )


def _transposed() -> Iterator[Pair]:
    yield from family(
        _GROUP,
        "conv_transpose2d",
        lambda x: F.conv_transpose2d(x, _TRANSPOSED, _BIAS, 2),
        {
            "zeros stuffed between": lambda x: F.conv2d(
                F.pad(_stuffed(x), (2, 2, 2, 2)), _TRANSPOSED.flip(2, 3).transpose(0, 1), _BIAS
            ),
            "conv_transpose3d": lambda x: F.conv_transpose3d(x[:, :, None], _TRANSPOSED[:, :, None], _BIAS, (1, 2, 2))[
                :, :, 0
            ],
            "+ bias": lambda x: F.conv_transpose2d(x, _TRANSPOSED, stride=2) + _BIAS.reshape(3, 1, 1),
        },
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "conv_transpose2d without bias",
        lambda x: F.conv_transpose2d(x, _TRANSPOSED, stride=2),
        {
            "matmul, fold": lambda x: F.fold(_TRANSPOSED.flatten(1).T @ x.flatten(2), (11, 13), 3, stride=2),
            "zeros stuffed between": lambda x: F.conv2d(
                F.pad(_stuffed(x), (2, 2, 2, 2)), _TRANSPOSED.flip(2, 3).transpose(0, 1)
            ),
        },
        shape=_PICTURES,
        presets=("paper",),
    )
    yield from family(
        _GROUP,
        "nearest upsampling",
        lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
        {
            "repeat_interleave": lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3),
            "expand": lambda x: x[:, :, :, None, :, None].expand(2, 4, 5, 2, 6, 2).reshape(2, 4, 10, 12),
            "indexing": lambda x: x[:, :, torch.arange(10) // 2][..., torch.arange(12) // 2],
            "nn.Upsample": nn.Upsample(scale_factor=2),
            "kron": lambda x: torch.kron(x, torch.ones(2, 2, dtype=x.dtype)),
        },
        shape=_PICTURES,
    )
    yield from family(
        _GROUP,
        "pixel_shuffle",
        lambda x: F.pixel_shuffle(x, 2),
        {
            "reshape": lambda x: x.reshape(2, 1, 2, 2, 5, 6).permute(0, 1, 4, 2, 5, 3).reshape(2, 1, 10, 12),
            "einsum": lambda x: torch.einsum("ncijhw->nchiwj", x.reshape(2, 1, 2, 2, 5, 6)).reshape(2, 1, 10, 12),
        },
        shape=_PICTURES,
    )
