"""How many pictures a second a job on a dataset explains, beside a loop by hand, and where the time goes.

``python -m benchmarks.datasets`` writes JPEG pictures, explains them at five layers with each way in turn, several
times, and prints the medians. The loop by hand reads the same pictures, stacks batches and calls ``attribute``; it
writes nothing. "Replayed" is the same with an attribution that was recorded before; a job records by itself after 200
batches. Ray is measured with ``--ray``, where the package ``ray`` is installed.

On a busy machine, compare CPU seconds: ``--threads 1``, and the last column.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from PIL import Image

import captum_cav
from captum_cav import LayerCAV, datasets
from captum_cav.datasets import explaining, shards
from captum_cav.datasets.sources import PictureFiles, picture_files

LAYERS = ["layer4", "layer3", "layer2", "layer1", "relu"]


def write_pictures(folder: Path, count: int) -> Path:
    """Photographs of noise, of the usual size of ImageNet."""
    dice = torch.Generator().manual_seed(0)
    for number in range(count):
        noise = (torch.rand(38, 50, 3, generator=dice) * 255).to(torch.uint8)
        picture = Image.fromarray(noise.numpy()).resize((500, 375), Image.Resampling.BICUBIC)
        file = folder / f"{number % 10}" / f"{number:05d}.jpg"
        file.parent.mkdir(exist_ok=True, parents=True)
        picture.save(file, quality=92)
    return folder


def by_hand(cav: LayerCAV, source: PictureFiles, batch_size: int, with_constants: bool) -> None:
    """What a user writes without this package's datasets: read, stack, attribute, sum over channels."""
    kept = []
    for first in range(0, len(source), batch_size):
        items = [source.load(index) for index in range(first, min(first + batch_size, len(source)))]
        inputs = torch.stack([item.input for item in items if item.input is not None])
        labels = [item.label for item in items]
        found = cav.attribute(inputs, labels, return_convergence_delta=with_constants)
        maps = found[0] if with_constants else found
        kept.append([one.sum(1).half() for one in maps])


@contextmanager
def timed(spent: dict[str, float], name: str, owner: Any, function: str) -> Iterator[None]:
    """Add up the seconds that a function takes."""
    original: Callable[..., Any] = getattr(owner, function)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - start

    with patch.object(owner, function, call):
        yield


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", default="resnet18", help="of torchvision, with layers like ResNet")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-constants", action="store_true")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for torch's own number")
    parser.add_argument("--ways", nargs="+", default=[], metavar="NAME", help="measure these beside the loop by hand")
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = torchvision.models.get_model(options.network, weights=None).eval()
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    cav = LayerCAV(model, LAYERS, normalize="abs")
    keep = ("maps", "scores") if options.without_constants else ("maps", "scores", "constants")
    with tempfile.TemporaryDirectory() as name:
        folder = write_pictures(Path(name) / "pictures", options.pictures)
        numbers = itertools.count()

        def job(attribution: LayerCAV = cav, **more: Any) -> None:
            arguments: dict[str, Any] = {
                "targets": "label",
                "keep": keep,
                "batch_size": options.batch_size,
                "progress": False,
            } | more
            datasets.explain_dataset(
                attribution,
                folder,
                Path(name) / f"output_{next(numbers)}",
                preprocess=transform,
                shard_size=64,
                **arguments,
            )

        source = picture_files(folder, transform, ())

        def loop(attribution: LayerCAV = cav) -> None:
            by_hand(attribution, source, options.batch_size, not options.without_constants)

        recorded = captum_cav.compile(cav)
        ways: dict[str, Callable[[], None]] = {
            "by hand": loop,
            "in this process": lambda: job(workers=0),
            "by hand, replayed": lambda: loop(recorded),
            "in this process, replayed": lambda: job(recorded, workers=0),
            "one process reads": lambda: job(workers=1),
            "two processes read": lambda: job(workers=2),
        }
        if options.ray:
            ways |= {f"Ray, {count} actors": functools.partial(job, engine="ray", workers=count) for count in (1, 2)}
        if options.ways:
            ways = {way: run for way, run in ways.items() if way in ("by hand", *options.ways)}
        loop()
        start = time.process_time()
        loop(recorded)
        recording = time.process_time() - start
        wall: dict[str, list[float]] = {way: [] for way in ways}
        cpu: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, run in ways.items():
                start, before = time.perf_counter(), sum(os.times()[:4])
                run()
                wall[way].append(time.perf_counter() - start)
                cpu[way].append(sum(os.times()[:4]) - before)
        spent: dict[str, float] = {}
        with (
            timed(spent, "reading", PictureFiles, "load"),
            timed(spent, "attribute", explaining.Explainer, "explain"),
            timed(spent, "all of a batch", shards, "_measure"),
            timed(spent, "writing", shards, "write"),
        ):
            start = time.perf_counter()
            job(workers=0)
            spent["all"] = time.perf_counter() - start
    print(
        f"{platform.processor()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{options.network}, {options.pictures} pictures of 500 x 375, five layers, batches of {options.batch_size}")
    print(
        "way, pictures a second, seconds of all processors, throughput over that of the loop by hand (by wall, by CPU)"
    )
    for way in ways:
        rate = options.pictures / statistics.median(wall[way])
        over = [
            statistics.median(a / b for a, b in zip(seconds["by hand"], seconds[way], strict=True))
            for seconds in (wall, cpu)
        ]
        print(f"{way:26} {rate:7.2f} {statistics.median(cpu[way]):8.1f} {over[0]:6.2f} {over[1]:6.2f}")
    print(f"the first loop with a recording: {recording:.1f} CPU seconds")
    print(
        "where the time goes, in this process: "
        + ", ".join(f"{part} {100 * one / spent['all']:.1f} %" for part, one in spent.items())
    )


if __name__ == "__main__":
    main()
