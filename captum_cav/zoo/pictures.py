"""Picture files, and the preprocessing that turns a picture into the input of a network."""

from __future__ import annotations

import importlib.resources
import os
import struct
import zlib
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms import functional

from captum_cav.errors import InputError


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Open a picture file as an upright RGB picture.

    The orientation that the camera stored (EXIF) is applied. Transparent parts are laid on white. Grey values of 16 bit
    are reduced to 8 bit. Of an animation the first picture is taken.

    Args:
        path: a file of any format that Pillow reads.

    Returns:
        The picture in mode "RGB".

    Raises:
        InputError: if the file is missing, is no picture, is damaged, or is so large that it may be an attack.

    Example::

        >>> import os, tempfile
        >>> from PIL import Image
        >>> path = os.path.join(tempfile.mkdtemp(), "clear.png")
        >>> Image.new("RGBA", (2, 1), (255, 0, 0, 0)).save(path)
        >>> open_picture(path).getpixel((0, 0))
        (255, 255, 255)
    """
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            return _to_rgb(picture)
    # On damaged files Pillow's decoders raise these errors besides OSError.
    except (
        OSError,
        Image.DecompressionBombError,
        EOFError,
        LookupError,
        OverflowError,
        RuntimeError,
        SyntaxError,
        TypeError,
        ValueError,
        struct.error,
        zlib.error,
    ) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"cannot open the picture {os.fspath(path)}: {reason}") from error


def demo_picture() -> Image.Image:
    """The picture that comes with captum_cav: a German shepherd above a tabby cat.

    Returns:
        An RGB picture of 448 x 448 pixels.

    Example::

        >>> demo_picture().size
        (448, 448)
    """
    with importlib.resources.as_file(importlib.resources.files("captum_cav") / "data" / "dog_above_cat.png") as path:
        return open_picture(path)


def squash(picture: Image.Image, size: int) -> Image.Image:
    """The whole picture as a square of ``size`` pixels; a picture that is not square is distorted."""
    return picture.resize((size, size), Image.Resampling.BICUBIC)


def crop(picture: Image.Image, transform: Any) -> Image.Image:
    """The part of a picture that a transform of torchvision keeps, before the colours are normalized.

    Transforms of networks that segment crop nothing, and those of networks that detect do not resize either.
    """
    if not hasattr(transform, "resize_size"):
        return picture
    resized: Image.Image = functional.resize(
        picture, transform.resize_size, transform.interpolation, antialias=transform.antialias
    )
    if not hasattr(transform, "crop_size"):
        return resized
    cropped: Image.Image = functional.center_crop(resized, transform.crop_size)
    return cropped


def efficientnet_lite_input(picture: Image.Image, size: int) -> torch.Tensor:
    """The input of EfficientNet-Lite: shape (3, size, size), colours from -1 to 1."""
    rgb: torch.Tensor = functional.pil_to_tensor(squash(picture, size))
    return (rgb.float() / 255 - 0.5) / 0.5


def caffe_input(picture: Image.Image, size: int) -> torch.Tensor:
    """The input of networks from Caffe: shape (3, size, size), blue first, colours from 0 to 255 minus their mean."""
    rgb: torch.Tensor = functional.pil_to_tensor(squash(picture, size))
    return rgb.flip(0).float() - torch.tensor([104.006, 116.669, 122.679], device="cpu")[:, None, None]


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        # Pillow would clip everything above 255 to white.
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ValueError(f"its pixels (mode {picture.mode}) have no known range; convert it to 8 bit")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")
