"""A page that shows what a network goes by, class by class: one HTML file for any browser.

``captum-cav summary DIR`` writes the page. The page loads nothing from elsewhere. It shows groups of maps, their
pictures and their mean maps, each picture as a point, and which classes may have a shortcut.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image

from captum_cav import checks
from captum_cav.datasets.analysis import Analysis, ClassAnalysis, class_name
from captum_cav.datasets.clusters import FARTHEST_BY_NATURE, FEWEST_MAPS, Cluster, typical_first
from captum_cav.datasets.reading import ExplainedDataset
from captum_cav.datasets.rows import Row
from captum_cav.errors import InputError
from captum_cav.page import encode_map, fill_page
from captum_cav.zoo.pictures import open_picture

__all__ = ["write_summary"]

#: Gives the part of a picture that the model sees.
Pictures: TypeAlias = Callable[[Row], Image.Image | None]

# How many pictures stand beside a mean map, and how large they are at most, in pixels.
_EXAMPLES = 8
_PICTURE_SIZE = 128
# Pictures of up to so many pixels a side are embedded without loss.
_EXACT_SIZE = 64


def write_summary(
    path: str | os.PathLike[str], analysis: Analysis, pictures: Pictures | None = None, *, most_classes: int = 30
) -> None:
    """Write a page that shows an analysis.

    Args:
        path: the HTML file to write.
        analysis: what :func:`captum_cav.datasets.analysis.analyze` returned.
        pictures: a function that takes a row and returns the part of the picture that the model sees, an RGB picture,
            or None if there is no picture. The page draws maps over these pictures. If None, the page shows the files
            that the rows name, whole and beside the maps, because the model may have seen only a part of them.
        most_classes: the page shows so many classes at most, those with the groups that stand farthest apart.

    Raises:
        InputError: for a count below 1.
        OSError: if the file cannot be written.

    Example::

        >>> import tempfile
        >>> from captum_cav import LayerCAV, datasets
        >>> from captum_cav.datasets.analysis import analyze
        >>> from torchvision.transforms.functional import to_pil_image
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten(), torch.nn.Linear(32, 2)).eval()
        >>> digits = torch.utils.data.TensorDataset(torch.rand(30, 1, 4, 4), torch.zeros(30, dtype=torch.long))
        >>> folder = Path(tempfile.mkdtemp())
        >>> attribution = LayerCAV(model, ["0"], normalize="abs")
        >>> _ = datasets.explain_dataset(attribution, digits, folder, targets="label", progress=False)
        >>> write_summary(folder / "page.html", analyze(folder), lambda row: to_pil_image(digits[row["index"]][0]))
        >>> (folder / "page.html").stat().st_size < 200_000
        True
    """
    checks.check_count(most_classes, "most_classes")
    output = analysis.output
    shown = analysis.classes[:most_classes]
    wanted = {row for one in shown for row in one.rows}
    rows = {number: row for number, row in enumerate(output.rows()) if number in wanted}
    settings = output.manifest["settings"]
    data = {
        "model": str(settings["model"]).rpartition(".")[2],
        "folder": str(output.folder),
        "layer": analysis.layer,
        "rows": len(output),
        "analysed": sum(len(one.rows) for one in analysis.classes),
        "skipped": analysis.skipped,
        "count": len(analysis.classes),
        "reported": [one.name for one in analysis.reported],
        "farthest": FARTHEST_BY_NATURE,
        "fewest": FEWEST_MAPS,
        "isFrame": pictures is not None,
        "classes": [_class_entry(output, one, rows, pictures or _open_file) for one in shown],
    }
    page = fill_page("summary.html", f"What does the network go by? {data['model']}", data)
    Path(path).write_text(page, encoding="utf-8")


def _open_file(row: Row) -> Image.Image | None:
    """The file of a row; None if the dataset names no file, or if the file is not there any more."""
    try:
        return open_picture(row["path"]) if row["path"] else None
    except InputError:
        return None


def _class_entry(
    output: ExplainedDataset,
    one: ClassAnalysis,
    rows: Mapping[int, Row],
    pictures: Pictures,
) -> dict[str, Any]:
    clustering, standout = one.clustering, one.clustering.standout
    sides = None if standout is None else [_group_entry(standout), _others_entry(one, standout)]
    groups = [_group_entry(cluster) for cluster in clustering.clusters]
    typical, untypical = one.typical_first[:_EXAMPLES], one.typical_first[: -_EXAMPLES - 1 : -1]
    in_tiles = {*typical, *untypical, *(place for group in [*(sides or []), *groups] for place in group["examples"])}
    group_of = {place: number for number, cluster in enumerate(clustering.clusters) for place in cluster.members}
    order = clustering.points[:, 0].argsort(stable=True).tolist()
    return {
        "name": one.name,
        "count": one.count,
        "analysed": len(one.rows),
        "distance": clustering.distance,
        "chance": clustering.chance,
        "isReported": clustering.is_reported,
        "place": None if standout is None else list(standout.place),
        "shares": None if standout is None else _shares_at(one, standout),
        "sides": sides,
        "groups": groups,
        "mean": encode_map(one.mean),
        "typical": list(typical),
        "untypical": list(untypical),
        "examples": {
            str(place): _example_entry(output, rows[one.rows[place]], one.rows[place], one.maps[place], pictures)
            for place in sorted(in_tiles)
        },
        "points": [
            {
                "position": place,
                "x": round(float(clustering.points[place, 0]), 4),
                "y": round(float(clustering.points[place, 1]), 6),
                "group": group_of.get(place, 0),
                **_row_entry(rows[one.rows[place]], one.rows[place]),
            }
            for place in order
        ],
        "layers": [
            {"name": layer, "constants": one.constants[layer], "agreement": _agreement(one, layer)}
            for layer in output.layers
        ],
    }


def _group_entry(cluster: Cluster) -> dict[str, Any]:
    return {
        "count": len(cluster.members),
        "distance": cluster.distance,
        "mean": encode_map(cluster.mean),
        "examples": list(cluster.members[:_EXAMPLES]),
    }


def _others_entry(one: ClassAnalysis, standout: Cluster) -> dict[str, Any]:
    others = _others(one, standout)
    maps = one.maps[others]
    return {
        "count": len(others),
        "distance": standout.distance,
        "mean": encode_map(maps.mean(0)),
        "examples": [others[place] for place in typical_first(maps)[:_EXAMPLES]],
    }


def _others(one: ClassAnalysis, cluster: Cluster) -> list[int]:
    return sorted(set(range(len(one.rows))) - set(cluster.members))


def _shares_at(one: ClassAnalysis, standout: Cluster) -> list[float]:
    """What the group that stands apart, and the others, have at the place where they differ most."""
    row, column = standout.place
    return [float(standout.mean[row, column]), float(one.maps[_others(one, standout), row, column].mean())]


def _agreement(one: ClassAnalysis, layer: str) -> float | None:
    """With the layer behind this one in the list; None for the last layer, and where it was not measured."""
    return next((value for (first, _), value in one.agreement.items() if first == layer and value == value), None)


def _row_entry(row: Row, number: int) -> dict[str, Any]:
    path = Path(row["path"] or "")
    return {"row": number, "id": row["id"], "link": path.as_uri() if path.is_absolute() else None}


def _example_entry(
    output: ExplainedDataset,
    row: Row,
    number: int,
    ratios: torch.Tensor,
    pictures: Pictures,
) -> dict[str, Any]:
    picture = pictures(row)
    return {
        **_row_entry(row, number),
        "label": None if row["label"] is None else class_name(output, row["label"]),
        "score": row["score"],
        "probability": row["probability"],
        "map": encode_map(ratios),
        "picture": None if picture is None else _encode_thumbnail(picture),
    }


def _encode_thumbnail(picture: Image.Image) -> dict[str, Any]:
    """A small copy of a picture. Tiny pictures are exact, photographs are small."""
    small = picture.convert("RGB")
    small.thumbnail((_PICTURE_SIZE, _PICTURE_SIZE))
    kinds = ["png"] if max(small.size) <= _EXACT_SIZE else ["png", "jpeg"]
    encoded = {kind: _encoded(small, kind) for kind in kinds}
    kind = min(encoded, key=lambda one: len(encoded[one]))
    source = f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode('ascii')}"
    return {"width": small.width, "height": small.height, "source": source}


def _encoded(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind.upper(), **({"quality": 88} if kind == "jpeg" else {"optimize": True}))
    return file.getvalue()
