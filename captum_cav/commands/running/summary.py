"""What ``captum-cav summary`` does."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from PIL import Image

from captum_cav.commands.outputs import Outputs, json_text
from captum_cav.commands.running import common
from captum_cav.datasets.analysis import Analysis, ClassAnalysis, analyze
from captum_cav.datasets.reading import open_output
from captum_cav.datasets.summary import write_summary

# How many classes the table on standard output has. The page and the JSON have more.
_MOST_LINES = 20


def run(options: argparse.Namespace, outputs: Outputs) -> int:
    """Run ``summary``: analyse the maps, write the page, print a table.

    Args:
        options: the options.
        outputs: where the page goes.

    Returns:
        The exit status, which is 1 if some maps could not be analysed.
    """
    output = open_output(options.folder)
    network = None if options.model is None else common.load_network(options, torch.device("cpu"))
    analysis = analyze(output, layer=options.layer, sample=options.sample, seed=options.seed, progress=True)

    def seen(row: dict[str, Any]) -> Image.Image | None:
        picture = common.open_or_skip(row["path"], alone=False)
        return None if picture is None or network is None else network.display(picture)

    with outputs.writing(options.output.name) as path:
        write_summary(path, analysis, seen if network else None, most_classes=options.classes)
    if not output.is_complete:
        print(f"{options.folder} is not finished; these are the rows that are there", file=sys.stderr)
    if analysis.skipped:
        print(f"{analysis.skipped} maps of {analysis.layer} have no contributions and were left out", file=sys.stderr)
    if options.json:
        print(json_text({**analysis.to_dict(), "page": str(options.output)}))
    else:
        print(_text(analysis))
        print(f"page: {options.output} ({common.size_of(options.output)})")
    return int(analysis.skipped > 0)


def _text(analysis: Analysis) -> str:
    """One line for each class, that with the group that stands farthest apart first."""
    shown = analysis.classes[:_MOST_LINES]
    width = max(len("class"), *(len(one.name) for one in shown))
    reported = ", ".join(one.name for one in analysis.reported)
    lines = [
        f"possible shortcuts at layer {analysis.layer}: {reported or 'none'}",
        f"  {'class':{width}}  {'maps':>6}  {'distance':>8}",
        *(f"  {one.name:{width}}  {len(one.rows):6}  {one.clustering.distance:8.1f}{_finding(one)}" for one in shown),
    ]
    if len(analysis.classes) > len(shown):
        lines.append(f"  and {len(analysis.classes) - len(shown)} more classes")
    return "\n".join(lines)


def _finding(one: ClassAnalysis) -> str:
    standout = one.clustering.standout
    if standout is None or not one.clustering.is_reported:
        return ""
    row, column = standout.place
    rows, columns = standout.mean.shape
    return (
        f"  {len(standout.members)} pictures stand apart, most at row {row + 1}, column {column + 1} of "
        f"{rows} x {columns} places"
    )
