"""A job: an attribution, pictures, an output, and everything that the numbers hang on."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import PIL
import torch

from captum_cav import checks
from captum_cav.compilation.compiled import as_usual, rounding_backend
from captum_cav.datasets import layout
from captum_cav.datasets.describing import describe, differences, fingerprint
from captum_cav.datasets.explaining import Explainer
from captum_cav.datasets.sources import Listed, PictureFiles, Source
from captum_cav.errors import InputError, OptionError
from captum_cav.version import __version__

#: Which target is explained: of each picture the best class, its label, or the same classes for all pictures; None if
#: the model gives one score for each sample.
Targets: TypeAlias = Literal["best", "label"] | int | Sequence[Any] | None
KEEP = ("maps", "channels", "scores", "constants")


@dataclass(frozen=True)
class Job:
    """What is computed, and where it is written. The function of a shard takes nothing else.

    Attributes:
        explainer: the attribution.
        source: the pictures.
        folder: the output.
        targets: ``"best"``, ``"label"``, or a tuple of targets that are explained for every picture.
        keep: what is stored.
        batch_size, shard_size: pictures in a batch, and in a shard.
    """

    explainer: Explainer
    source: Source
    folder: Path
    targets: Literal["best", "label"] | tuple[Any, ...]
    keep: tuple[str, ...]
    batch_size: int
    shard_size: int

    @property
    def rows_per_picture(self) -> int:
        """How many rows a picture has. There is one for each target."""
        return 1 if isinstance(self.targets, str) else len(self.targets)

    @property
    def shards(self) -> range:
        """The numbers of the shards."""
        return range(-(-len(self.source) // self.shard_size))

    def pictures_of(self, shard: int) -> range:
        """The indices of the pictures of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, len(self.source)))

    def batches_of(self, shard: int) -> Iterator[range]:
        """The indices of the pictures of a shard, batch by batch."""
        pictures = self.pictures_of(shard)
        for first in range(pictures.start, pictures.stop, self.batch_size):
            yield range(first, min(first + self.batch_size, pictures.stop))

    def settings(self) -> dict[str, Any]:
        """Everything that the numbers hang on, as values for JSON."""
        explainer = self.explainer
        attribution = explainer.attribution
        model = explainer.model
        settings: dict[str, Any] = {
            "model": describe(type(model) if isinstance(model, torch.nn.Module) else model),
            "weights": _weights(model),
            "attribution": type(as_usual(attribution)).__name__,
            "layers": explainer.layers,
        }
        backend = rounding_backend(attribution)
        if backend is not None:
            settings["backend"] = backend
        options = getattr(attribution, "options", None)
        if options is not None:
            settings |= options._asdict()
            settings["rules"] = {key: describe(rules) for key, rules in options.rules.given(model).items()}
            settings["function"] = None if options.function is None else describe(options.function)
            settings["call"] = getattr(attribution, "call", None)
        settings |= {
            "device": explainer.device.type,
            "targets": self.targets if isinstance(self.targets, str) else [describe(one) for one in self.targets],
            "keep": list(self.keep),
            "dtype": "float16" if explainer.is_half else "float32",
            "batch_size": self.batch_size,
            "shard_size": self.shard_size,
            "dataset": self.source.described(),
            "first_picture": self._first_picture(),
            "classes": list(self.source.classes),
            "versions": {
                "captum_cav": __version__,
                "torch": torch.__version__,
                "captum": importlib.metadata.version("captum"),
                "pillow": PIL.__version__,
            },
        }
        return settings

    def _first_picture(self) -> str | None:
        """The fingerprint of the first picture, as the model sees it: a preprocessing that changed gives another one.

        Raises:
            InputError: if the dataset gives other numbers for the same picture when it is asked again.
        """
        seen = [self.source.load(0) for _ in range(2)]
        found = [None if item.input is None else fingerprint([("", item.input)]) for item in seen]
        if found[0] != found[1] and None not in found:
            raise InputError(
                "the dataset gives other numbers for item 0 when it is asked again; expected a dataset without random "
                "transforms, so that a job that was stopped can go on with the same pictures."
            )
        return found[0]


def _weights(model: Any) -> str | None:
    """The fingerprint of all parameters and buffers; None if the model is a function, which does not tell them."""
    if not isinstance(model, torch.nn.Module):
        return None
    return fingerprint([*model.named_parameters(), *model.named_buffers()])


def check_targets(targets: Targets) -> Literal["best", "label"] | tuple[Any, ...]:
    """The targets as :class:`Job` has them.

    Raises:
        OptionError: for another text, and for an empty list.
    """
    if isinstance(targets, str):
        checks.check_option("targets", targets, ("best", "label"))
        return targets  # type: ignore[return-value]
    if targets is None or isinstance(targets, int):
        return (targets,)
    if not len(targets):
        raise OptionError('targets is empty; expected "best", "label", or at least one class.')
    return tuple(int(one) if isinstance(one, torch.Tensor) else one for one in targets)


def check_keep(keep: Sequence[str]) -> tuple[str, ...]:
    """What is stored, in a fixed order.

    Raises:
        OptionError: for an unknown name.
    """
    if isinstance(keep, str):
        raise OptionError(f"keep is the text {keep!r}; expected a list, such as keep=({keep!r},).")
    for name in keep:
        checks.check_option("keep", name, KEEP)
    if "maps" in keep and "channels" in keep:
        raise OptionError('keep holds "maps" and "channels"; expected "maps", summed over channels, or "channels".')
    return tuple(name for name in KEEP if name in keep)


def begin(job: Job, *, resume: bool) -> Job:
    """Make the output, or see that an output was begun with the same settings.

    Args:
        job: the job.
        resume: whether to go on with an output that was begun before.

    Returns:
        The job, with the list of picture files that it was begun with.

    Raises:
        OptionError: if the settings differ; names the differences.
        InputError: if there is an output and ``resume`` is false, if the folder holds other files of these names, or if
            nothing can be written.
    """
    with layout.setting_up(job.folder):
        begun = layout.read_json(job.folder / layout.JOB)
        if begun is None:
            _refuse_foreign_files(job.folder)
            if isinstance(job.source, PictureFiles):
                layout.write_file(job.folder / layout.PICTURES, _as_csv(job.source.listed))
            layout.write_json(job.folder / layout.JOB, {"format": layout.FORMAT, "settings": _with_list(job)})
            return job
        if not resume:
            raise InputError(f"{job.folder} holds a job already; give another output, or resume=True to go on with it.")
        if begun.get("format") != layout.FORMAT:
            raise InputError(
                f"{job.folder} has format {begun.get('format')!r}; expected format {layout.FORMAT}, which this version "
                "of captum_cav writes. Give another output."
            )
        if isinstance(job.source, PictureFiles):
            _take_list(job.source, job.folder)
        before, now = begun["settings"], _with_list(job)
        if None in (before.get("first_picture"), now["first_picture"]):
            # The first picture was missing then, or is missing now: that is a row with an error.
            before, now = ({**one, "first_picture": None} for one in (before, now))
        found = differences(before, now)
        if found:
            raise OptionError(
                f"{job.folder} was begun with other settings: {'; '.join(found)}. Rows of both would not fit together; "
                "use the settings from before, or give another output."
            )
    return job


def _with_list(job: Job) -> dict[str, Any]:
    settings = job.settings()
    if isinstance(job.source, PictureFiles):
        settings["dataset"]["list"] = hashlib.sha256(_as_csv(job.source.listed)).hexdigest()
    return settings


def _refuse_foreign_files(folder: Path) -> None:
    # A job that was killed at its very beginning leaves its list.
    for name, ours in ((layout.PICTURES, _as_csv([])), (layout.MANIFEST, None)):
        path = folder / name
        if path.exists() and not (ours and path.is_file() and path.read_bytes().startswith(ours)):
            raise InputError(f"{path} exists and belongs to something else; give another output.")


def _as_csv(listed: Sequence[Listed]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Listed._fields)
    writer.writerows(listed)
    return text.getvalue().encode()


def _take_list(source: PictureFiles, folder: Path) -> None:
    """Go on with the list that the job was begun with. Pictures that are gone become rows with an error.

    Raises:
        InputError: if there are pictures that are not in that list.
    """
    with (folder / layout.PICTURES).open(newline="", encoding="utf-8") as file:
        listed = [Listed(**row) for row in csv.DictReader(file)]
    added = sorted(set(source.listed) - set(listed))
    if added:
        more = f" and {len(added) - 3} more" if len(added) > 3 else ""
        raise InputError(
            f"the dataset now has pictures that the job in {folder} was not begun with: "
            f"{', '.join(one.path for one in added[:3])}{more}. Give another output, or take these pictures away."
        )
    source.take(listed)
