"""What ``captum-cav demo`` and ``captum-cav explain`` do."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from captum_cav import single_image, zoo
from captum_cav.commands import names
from captum_cav.commands.outputs import Outputs, json_text
from captum_cav.commands.running import common
from captum_cav.compilation.repeated import Recordings, keeping
from captum_cav.errors import CAVError, InputError
from captum_cav.explanation import Explanation, explain, show_beside

# The second figure shows the maps of this preset below the maps of the chosen rules; beside this preset itself, those
# of the paper's rules.
_OTHER, _PAPER = "pinpoint", "paper"


def run(
    options: argparse.Namespace,
    pictures: Mapping[str, Path | None],
    outputs: Outputs,
    photographs: Outputs | None = None,
) -> int:
    """Run ``demo`` or ``explain``: print what raised and lowered the scores, and write figures of each picture.

    Args:
        options: the options.
        pictures: by the name of what is written of them, the picture files; None stands for the embedded picture.
        outputs: where the figures go.
        photographs: where ``demo`` writes the embedded picture and parts of it; None for ``explain``.

    Returns:
        The exit status, which is 1 if a picture was left out.
    """
    if photographs is not None:
        for name, box in names.DEMO_PHOTOGRAPHS.items():
            with photographs.writing(name) as path:
                zoo.demo_picture().crop(box).save(path)
    network = common.load_network(options, common.choose_device(options.device))
    options.rules = common.choose_rules(options, network)
    done: dict[str, list[Explanation]] = {}
    recordings = Recordings(fused=options.compile)
    with tqdm(pictures.items(), delay=1, leave=False) as progress:
        for stem, file in progress:
            progress.set_description(stem, refresh=False)
            alone = len(pictures) == 1
            picture = zoo.demo_picture() if file is None else common.open_or_skip(file, alone=alone)
            if picture is None:
                continue
            try:
                with keeping(recordings):
                    done[stem] = _explain(options, network, picture)
            except CAVError as error:
                raise type(error)(f"{file}: {error}" if len(pictures) > 1 else str(error)) from error
            _write(options, stem, done[stem], outputs)
            if not options.json:
                tqdm.write(_text(stem if len(pictures) > 1 else "", done[stem]), file=sys.stdout)
    if not done:
        raise InputError(f"none of the {len(pictures)} pictures can be opened")
    outputs.write_text(names.SHARES_FILE, _csv(done))
    if options.json:
        print(json_text([_as_json(options, stem, pictures[stem], one, outputs) for stem, (one, _) in done.items()]))
    else:
        print(f"\n{single_image.WHICH_TO_BELIEVE}")
        files = [file for stem in done for file in names.explained_files(stem, arrays=options.save_arrays)]
        print(f"in {outputs.folder}: {', '.join([*files, names.SHARES_FILE])}")
        if photographs is not None:
            print(f"photographs to try other commands with: {photographs.folder}")
    return int(len(done) < len(pictures))


def _explain(options: argparse.Namespace, network: zoo.Network, picture: Image.Image) -> list[Explanation]:
    """The picture with the chosen rules, and with other rules."""
    scored, score = common.choose_score(options, network)
    inputs = single_image.batch_of(scored, picture)
    scored = single_image.ready(scored, inputs)
    layers = common.choose_layers(options, scored, inputs)
    target = options.target
    return [
        explain(
            scored,
            picture,
            target,
            layers,
            rules=rules,
            score=score,
            normalize=None if options.normalize == "none" else options.normalize,
        )
        for rules in (options.rules, _PAPER if options.rules == _OTHER else _OTHER)
    ]


def _write(options: argparse.Namespace, stem: str, explained: Sequence[Explanation], outputs: Outputs) -> None:
    contributions, rules, *arrays = names.explained_files(stem, arrays=options.save_arrays)
    with outputs.writing(contributions) as path:
        explained[0].figure().savefig(path, dpi=110)
    with outputs.writing(rules) as path:
        show_beside(explained).savefig(path, dpi=110)
    for name in arrays:
        with outputs.writing(name) as path, path.open("wb") as file:
            np.savez_compressed(file, **explained[0].to_arrays())  # type: ignore[arg-type]


def _text(heading: str, explained: Sequence[Explanation]) -> str:
    first, other = explained
    hidden = "\n".join(other.hiding(one) for one in other.classes)
    parts = [f"== {heading}" if heading else "", first.best_classes, f"\n{first.table()}"]
    parts.append(f"\nthe same with the rules {other.rules}\n{hidden}")
    return "\n".join(part for part in parts if part)


def _as_json(
    options: argparse.Namespace, stem: str, file: Path | None, explained: Explanation, outputs: Outputs
) -> dict[str, Any]:
    written = names.explained_files(stem, arrays=options.save_arrays)
    return {
        "picture": None if file is None else str(file),
        **explained.to_dict(),
        "files": [str(outputs.folder / name) for name in written],
    }


def _csv(done: Mapping[str, Sequence[Explanation]]) -> str:
    """One row for each picture, class and layer, with the chosen rules."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        "picture index class score probability rules layer height width raised lowered constants unexplained".split()
    )
    for stem, (explained, _) in done.items():
        for one in explained.classes:
            for layer in explained.layers:
                shares = one.shares[layer] if single_image.has_amounts(explained.rules) else [""] * 4
                writer.writerow(
                    [
                        stem,
                        one.index,
                        one.name,
                        one.score,
                        "" if one.probability is None else one.probability,
                        explained.rules,
                        layer,
                        *one.maps[layer].shape,
                        *shares,
                    ]
                )
    return text.getvalue()
