"""Faint digits in noise, with or without a white mark in the corner of most pictures of one class; their network."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.transforms.functional import to_pil_image

from captum_cav import InputCAV, datasets
from captum_cav.datasets.reading import ExplainedDataset
from captum_cav.datasets.rows import Row

MARKED_CLASS = 3
#: The mark covers so many rows and columns of the upper left corner.
MARK = 3
SEED = 0


def digits(
    share: float, seed: int = SEED, *, contrast: float = 0.3, noise: float = 0.15
) -> tuple[TensorDataset, torch.Tensor]:
    """The pictures with their classes, and which pictures have the mark.

    Args:
        share: how many pictures of the class get the mark.
        seed: for the noise, and for which pictures get the mark.
        contrast: the brightness of the brightest pixel of a digit; that of the mark is 1.
        noise: the standard deviation of the noise.
    """
    loaded = load_digits()
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.from_numpy(loaded.images).float()[:, None] / 16 * contrast
    pictures += noise * torch.randn(pictures.shape, generator=generator)
    classes = torch.from_numpy(loaded.target)
    marks = (classes == MARKED_CLASS) & (torch.rand(len(classes), generator=generator) < share)
    pictures[marks, :, :MARK, :MARK] = 1.0
    return TensorDataset(pictures, classes), marks


def trained(pictures: TensorDataset, seed: int = SEED) -> nn.Module:
    """A small network that was trained on the pictures."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    inputs, classes = pictures.tensors
    for _ in range(6):
        for batch in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), classes[batch]).backward()
            optimizer.step()
    return model.eval()


def explained(folder: Path, pictures: TensorDataset, model: nn.Module) -> ExplainedDataset:
    """The pictures, explained with their labels."""
    return datasets.explain_dataset(
        InputCAV(model, rules="epsilon_plus", normalize="abs"),
        pictures,
        folder,
        targets="label",
        batch_size=256,
        classes=[f"digit {number}" for number in range(10)],
        progress=False,
    )


def shown(pictures: TensorDataset, row: Row) -> Image.Image:
    """The picture of a row."""
    return to_pil_image(pictures[row["index"]][0].clamp(0, 1))
