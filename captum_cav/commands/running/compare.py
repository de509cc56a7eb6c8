"""What ``captum-cav compare`` does."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from captum_cav import single_image, zoo
from captum_cav.commands import names
from captum_cav.commands.options import inputs_of
from captum_cav.commands.outputs import Outputs, json_text
from captum_cav.commands.running import common
from captum_cav.comparison import Comparison, compare
from captum_cav.compilation.repeated import Recordings, keeping
from captum_cav.errors import InputError
from captum_cav.version import __version__

*_, _MADE_FROM = names.COMPARISON_FILES


def run(options: argparse.Namespace, pictures: Mapping[str, Path], outputs: Outputs) -> int:
    """Run ``compare``: write maps and a figure of each picture as soon as they are there, then a table of all.

    Args:
        options: the options.
        pictures: by the name of what is written of them, the picture files.
        outputs: where the figures and the table go.

    Returns:
        The exit status, which is 1 if a picture was left out.
    """
    network = common.load_network(options, common.choose_device(options.device))
    targets = options.target or []
    asked = dict(zip(pictures, targets if len(targets) == len(pictures) else targets * len(pictures), strict=False))
    done: dict[str, Comparison] = {}
    recordings = Recordings(fused=options.compile)
    # Where standard output is JSON, what is said on the way goes to standard error.
    messages = sys.stderr if options.json else sys.stdout
    with tqdm(pictures.items(), delay=1, leave=False, disable=len(pictures) == 1) as progress:
        for stem, file in progress:
            progress.set_description(stem, refresh=False)
            picture = common.open_or_skip(file, alone=len(pictures) == 1)
            if picture is None:
                continue
            with keeping(recordings):
                network, done[stem], said = _compared(options, network, stem, file, picture, asked.get(stem), outputs)
            tqdm.write(f"{file}: {said}; {outputs.folder / names.comparison_figure(stem)}", file=messages)
    if not done:
        raise InputError(f"none of the {len(pictures)} pictures can be opened")
    comparison = Comparison.join(list(done.values()))
    outputs.write_text(names.COMPARISON_TABLE, comparison.to_csv())
    if options.json:
        rows = [vars(row) | {"picture": str(pictures[list(done)[row.example]])} for row in comparison.rows]
        print(json_text(rows))
    else:
        folders = ", ".join(str(outputs.folder / names.comparison_folder(stem)) for stem in done)
        print(f"\n{comparison}\n\ntable: {outputs.folder / names.COMPARISON_TABLE}, maps: {folders}")
        if options.compile:
            print("seconds of CAV are those of fused kernels, without the time that it took to fuse them")
        print(single_image.WHICH_TO_BELIEVE)
    return int(len(done) < len(pictures))


def _compared(
    options: argparse.Namespace,
    network: zoo.Network,
    stem: str,
    file: Path,
    picture: Image.Image,
    target: str | None,
    outputs: Outputs,
) -> tuple[zoo.Network, Comparison, str]:
    """Compare the methods on one picture, or take what an earlier run has finished.

    Returns:
        The network with a model that gives logits, the comparison, and what was explained.
    """
    inputs = single_image.batch_of(network, picture)
    network = single_image.with_logits(single_image.ready(network, inputs), inputs)
    scores = single_image.class_scores(network.model, inputs)
    index = int(scores.argmax()) if target is None else network.class_index(target)
    said = f"the score of {network.class_name(index)}, {float(scores[index]):.2f} in {network.name}"
    layers = common.choose_layers(options, network, inputs)
    folder = Outputs(outputs.folder / names.comparison_folder(stem), inputs_of(options, [file]), force=options.force)
    made_from = _made_from(options, file, index, layers)
    comparison = _finished(folder.folder, made_from) if options.resume else None
    if comparison is None:
        comparison = compare(
            network.model,
            inputs,
            index,
            options.methods,
            layers,
            options.measures,
            batch_size=options.batch_size,
            repeats=options.repeats,
            # If one method does not work for the network, the results of the others are still wanted.
            on_error="record",
        )
        folder.plan(*names.COMPARISON_FILES)
        comparison.save(folder.folder)
        folder.write_text(_MADE_FROM, json.dumps(made_from, indent=1))
        folder.remember(*names.COMPARISON_FILES)
    with outputs.writing(names.comparison_figure(stem)) as path:
        title = f"What raised (red) and lowered (blue) {said}"
        comparison.figure(0, network.display(picture), title).savefig(path, dpi=110)
    return network, comparison, said


def _made_from(options: argparse.Namespace, file: Path, index: int, layers: list[str]) -> dict[str, Any]:
    """Everything that decides about the results of one picture."""
    read = [Path(file), *([] if options.weights is None else [Path(options.weights)])]
    return {
        "files": [hashlib.sha256(one.read_bytes()).hexdigest() for one in read],
        "class": index,
        "layers": layers,
        **{name: getattr(options, name) for name in ("model", "device", "repeats", "batch_size", "compile")},
        **{name: list(getattr(options, name)) for name in ("methods", "measures")},
        "captum_cav": __version__,
    }


def _finished(folder: Path, made_from: Mapping[str, Any]) -> Comparison | None:
    """The comparison in a folder, if it is complete and was made from the same."""
    try:
        if json.loads((folder / _MADE_FROM).read_text(encoding="utf-8")) != made_from:
            return None
        return Comparison.load(folder)
    except (OSError, ValueError):
        return None
