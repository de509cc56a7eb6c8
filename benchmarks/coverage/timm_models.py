"""Networks of timm with random parameters: one of every family, or a random sample of all."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator

import timm
import torch
from timm.models import list_models, list_modules

from benchmarks.coverage.problem import Problem
from benchmarks.coverage.randomise import SEED, randomised

#: Parameters times pixels. Beyond the first a network runs in float32; beyond the second the sample leaves it out.
HEAVY, HEAVIEST = 1e13, 1.5e13
_SIZES = "test atto femto pico nano zepto xxs xxt xx_small xt x_small xs micro mini tiny small _s 0 1 2 base _b".split()


def families() -> Iterator[tuple[str, Callable[[], Problem]]]:
    """Name and builder of the smallest network of each module of timm, the light ones first."""
    found = []
    for module in list_modules():
        names = list_models(module=module)
        likely = sorted(names, key=lambda name: (next((i for i, s in enumerate(_SIZES) if s in name), 99), name))[:8]
        found += [min((_work(name), module, name) for name in likely)] if likely else []
    for _, module, name in sorted(found):
        yield f"{module}: {name}", functools.partial(build, name)


def sample(count: int) -> Iterator[tuple[str, Callable[[], Problem]]]:
    """Name and builder of networks drawn with a fixed seed, in the order in which they were drawn."""
    names = sorted(list_models())
    random.Random(SEED).shuffle(names)  # noqa: S311
    light = (name for name in names if _work(name) <= HEAVIEST)
    for name, _ in zip(light, range(count), strict=False):
        yield name, functools.partial(build, name)


def _on_no_device(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        net: torch.nn.Module = timm.create_model(name)
    return net


def _work(name: str) -> int:
    net = _on_no_device(name)
    _, height, width = _input_size(net)
    return sum(parameter.numel() for parameter in net.parameters()) * height * width


def _input_size(net: torch.nn.Module) -> tuple[int, int, int]:
    size: tuple[int, int, int] = net.pretrained_cfg.get("input_size") or (3, 224, 224)  # type: ignore[operator, union-attr]
    return size


def build(name: str) -> Problem:
    """A network, an input and the class (or feature, where it has no classes) of the highest score."""
    torch.manual_seed(SEED)
    net = randomised(timm.create_model(name))
    dtype = torch.float32 if _work(name) > HEAVY else torch.float64
    net = net.to(dtype)
    x = torch.randn(1, *_input_size(net), dtype=dtype, generator=torch.Generator().manual_seed(SEED))

    def score(images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = net(images)
        return scores.flatten(1)

    with torch.no_grad():
        return Problem(score, net, x, int(score(x).argmax(1)))
