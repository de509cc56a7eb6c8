"""Time of contribution ratios against the bare price of one gradient.

The floor is what nobody can avoid: a forward pass and the gradient of the score down to the input, by hand, with
frozen parameters. Both are timed in turn in one process, so that the ratio, taken pair by
pair, holds on a machine whose speed drifts.

    python -m benchmarks.cost [--networks vgg16 resnet50 ...] [--presets gamma ...] [--batch 1] [--repeats 15]
        [--device cpu]
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torchvision

from captum_cav import InputCAV, LayerCAV
from captum_cav.presets import NAMES

LAYERS = {
    "vgg16": ["features.4", "features.9", "features.16", "features.23", "features.30"],
    "resnet50": ["relu", "layer1", "layer2", "layer3", "layer4"],
    "mobilenet_v2": ["features.1", "features.3", "features.6", "features.13", "features.18"],
    "efficientnet_b0": ["features.1", "features.2", "features.3", "features.5", "features.8"],
    "densenet121": [
        "features.relu0",
        "features.denseblock1",
        "features.denseblock2",
        "features.denseblock3",
        "features",
    ],
    "convnext_tiny": ["features.0", "features.1", "features.3", "features.5", "features.7"],
    "vit_b_16": [f"encoder.layers.encoder_layer_{index}" for index in (0, 3, 6, 9, 11)],
    "swin_t": ["features.0", "features.1", "features.3", "features.5", "features.7"],
}


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def row(name: str, presets: Sequence[str], batch: int, repeats: int, device: torch.device) -> str:
    """One network: median seconds of the floor, and the median ratio to it with its spread."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval().to(device)
    frozen = torchvision.models.get_model(name, weights=None).eval().to(device).requires_grad_(False)
    frozen.load_state_dict(model.state_dict())
    inputs = torch.randn(batch, 3, 224, 224, device=device)
    all_depths = LayerCAV(model, LAYERS[name])
    with_constants = LayerCAV(model, LAYERS[name])
    deepest = LayerCAV(model, LAYERS[name][-1])

    def floor() -> object:
        x = inputs.clone().requires_grad_()
        return torch.autograd.grad(frozen(x)[:, 0].sum(), x)

    columns: list[Callable[[], object]] = [
        floor,
        lambda: all_depths.attribute(inputs, 0),
        lambda: with_constants.attribute(inputs, 0, return_convergence_delta=True),
        lambda: deepest.attribute(inputs, 0),
        *(functools.partial(InputCAV(model, rules=preset).attribute, inputs, 0) for preset in presets),
    ]
    for column in columns:
        column()
    times = [[seconds(column, device) for column in columns] for _ in range(repeats)]
    cells = []
    for index in range(1, len(columns)):
        ratios = sorted(pair[index] / pair[0] for pair in times)
        cells.append(
            f"{statistics.median(ratios):.3f} ({ratios[len(ratios) // 4]:.3f}-{ratios[-1 - len(ratios) // 4]:.3f})"
        )
    return f"| {name} | {batch} | {statistics.median(pair[0] for pair in times):.3f} s | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["vgg16", "resnet50"], choices=sorted(LAYERS))
    parser.add_argument("--presets", nargs="+", default=[], choices=NAMES, help="rules to time down to the input")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads; median ratio (quartiles)")
    heads = ["five layers", "with shares of constants", "last layer", *options.presets]
    print(f"| network | batch | floor | {' | '.join(f'{head} / floor' for head in heads)} |")
    print("|---" * (3 + len(heads)) + "|")
    for name in options.networks:
        print(row(name, options.presets, options.batch, options.repeats, options.device), flush=True)


if __name__ == "__main__":
    main()
