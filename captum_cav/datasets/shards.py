"""A shard: some pictures of a dataset, explained and written.

A shard is a function of the job and of its number, and of nothing else: whoever computes it, and however often, writes
the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch.utils.data import Dataset

from captum_cav.datasets import layout, rows
from captum_cav.datasets.explaining import Measured, Outputs, on_device
from captum_cav.datasets.jobs import Job
from captum_cav.datasets.sources import Item, Source, reason
from captum_cav.errors import CAVError, InputError, ModelError, TargetError

#: What is wrong with a sample, and not with the job.
_OF_A_SAMPLE = (InputError, ModelError, TargetError)

_NO_RATIOS = "the score is 0, so ratios to it mean nothing"


class Batch(NamedTuple):
    """Pictures that were read together.

    Attributes:
        items: the pictures, without their inputs.
        inputs: for each shape of inputs, the places of its pictures among the items, and their inputs, (N, ...).
    """

    items: list[Item]
    inputs: list[tuple[list[int], torch.Tensor]]


class Loading(Dataset[Item]):
    """The pictures of a source, as a dataset of torch.

    Args:
        source: the source.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Item:
        return self._source.load(index)


def collate(items: Sequence[Item]) -> Batch:
    """Put pictures of the same shape together."""
    places: dict[tuple[Any, ...], list[int]] = {}
    for place, item in enumerate(items):
        if item.input is not None:
            places.setdefault((item.input.shape, item.input.dtype), []).append(place)
    inputs = [
        (chosen, torch.stack([one for place in chosen if (one := items[place].input) is not None]))
        for chosen in places.values()
    ]
    return Batch([replace(item, input=None) for item in items], inputs)


def read_batches(job: Job, shard: int) -> Iterator[Batch]:
    """The pictures of a shard, batch by batch, read in this process."""
    for indices in job.batches_of(shard):
        yield collate([job.source.load(index) for index in indices])


@dataclass
class Computed:
    """The rows and tensors of a shard.

    Attributes:
        rows: in the order of the pictures, and for each picture in the order of its targets.
        tensors: by their names in the file.
        unreadable: the indices of the pictures that could not be read.
        failure: the first error of the attribution; None if there is none.
    """

    rows: list[rows.Row] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    unreadable: list[int] = field(default_factory=list)
    failure: CAVError | None = None

    @property
    def errors(self) -> int:
        """How many rows have an error instead of numbers."""
        return sum(bool(row["error"]) for row in self.rows)


def compute(job: Job, shard: int, batches: Iterable[Batch]) -> Computed:
    """Explain the pictures of a shard.

    Args:
        job: the job.
        shard: the number of the shard.
        batches: the pictures of the shard, in their order.

    Raises:
        CAVError: for what is wrong with the model, the layers or the options. What is wrong with single pictures is
            in their rows.
    """
    found = Computed()
    groups: dict[tuple[int, ...], _Group] = {}
    for batch in batches:
        of_item: list[list[rows.Row]] = []
        for item in batch.items:
            if item.error:
                found.unreadable.append(item.index)
            of_item.append(rows.empty(job, shard, item))
        for places, inputs in batch.inputs:
            group = groups.setdefault(tuple(inputs.shape[1:]), _Group(len(groups)))
            items = [batch.items[place] for place in places]
            chosen = [of_item[place] for place in places]
            _explain(job, found, group, items, inputs, chosen)
        found.rows += [row for of_one in of_item for row in of_one]
    for group in groups.values():
        found.tensors |= group.tensors(job)
    return found


def write(job: Job, shard: int, computed: Computed) -> dict[str, Any]:
    """Write a shard, its entry last.

    Args:
        job: the job.
        shard: the number of the shard.
        computed: what was computed.

    Returns:
        The entry of the shard in the manifest.

    Raises:
        InputError: if the files cannot be written.
    """
    # The order of several entries of safetensors' metadata is not the same in all processes; none are needed.
    files = {
        ".safetensors": safetensors.torch.save(computed.tensors),
        ".csv": rows.as_csv(job, computed.rows),
    }
    layout.shard_file(job.folder, shard, ".json").unlink(missing_ok=True)
    for suffix, data in files.items():
        layout.write_file(layout.shard_file(job.folder, shard, suffix), data)
    entry = {
        "shard": layout.shard_name(shard),
        "first": job.pictures_of(shard).start,
        "pictures": len(job.pictures_of(shard)),
        "rows": len(computed.rows),
        "errors": computed.errors,
        "unreadable": computed.unreadable,
        "bytes": {suffix: len(data) for suffix, data in files.items()},
    }
    layout.write_json(layout.shard_file(job.folder, shard, ".json"), entry)
    return entry


@dataclass
class _Group:
    """What was found out about the pictures of one shape in a shard, on the host.

    Attributes:
        number: of the group in the shard.
        maps, scales: for each layer, a tensor for each batch.
        scores: all scores of the model, a tensor for each batch.
        length: how many maps there are.
    """

    number: int
    maps: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    scales: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    scores: list[torch.Tensor] = field(default_factory=list)
    length: int = 0

    def tensors(self, job: Job) -> dict[str, torch.Tensor]:
        """All tensors by their names in the file."""
        found: dict[str, torch.Tensor] = {}
        if "maps" in job.keep or "channels" in job.keep:
            found |= {rows.map_name(self.number, layer): torch.cat(parts) for layer, parts in self.maps.items()}
            found |= {rows.scale_name(self.number, layer): torch.cat(parts) for layer, parts in self.scales.items()}
        if "scores" in job.keep and self.scores:
            found[rows.scores_name(self.number)] = torch.cat(self.scores)
        return found


def _explain(
    job: Job,
    found: Computed,
    group: _Group,
    items: Sequence[Item],
    inputs: torch.Tensor,
    chosen: Sequence[list[rows.Row]],
) -> None:
    """Explain pictures of one shape. If that fails, explain them one by one, so that only some rows have an error."""
    try:
        measured, outputs = _measure(job, items, inputs)
    except _OF_A_SAMPLE as error:
        if len(items) > 1:
            for place, item in enumerate(items):
                _explain(job, found, group, [item], inputs[place : place + 1], [chosen[place]])
            return
        found.failure = found.failure or error
        for row in chosen[0]:
            row["error"] = reason(error)
        return
    scores = outputs.scores.float().cpu()
    best = scores.argmax(1).tolist() if scores.dim() == 2 and scores.shape[1] > 1 else [None] * len(items)
    for number, one in enumerate(measured):
        _add(job, group, one, scores)
        shares, sums, values, probabilities = (part.tolist() for part in one[2:])
        for place, of_item in enumerate(chosen):
            row = of_item[number]
            if not all(map(math.isfinite, sums[place])):
                row["error"] = _NO_RATIOS if job.explainer.gives_ratios else "the map holds NaN or infinity"
            rows.fill(job, row, values[place], probabilities[place], best[place], shares[place])
            if row["target"] is None and job.targets == "best":
                row["target"] = best[place]
            row["group"], row["position"] = group.number, group.length + place
        group.length += len(items)


def _measure(job: Job, items: Sequence[Item], inputs: torch.Tensor) -> tuple[list[Measured], Outputs]:
    """Explain pictures of one shape; what was measured is on the host."""
    inputs = inputs.to(job.explainer.device, non_blocking=True)
    outputs: Outputs | None = None
    targets: Sequence[Any]
    if job.targets == "best":
        outputs = job.explainer.outputs(inputs)
        if outputs.scores.dim() != 2:
            raise TargetError(
                f'targets is "best", and the model gives scores of shape {tuple(outputs.scores.shape)}; expected '
                "(N, classes). Pass the targets, or targets=None if the model gives one score for each sample."
            )
        targets = [outputs.scores.argmax(1).tolist()]
    elif job.targets == "label":
        without = [item.id for item in items if item.label is None]
        if without:
            raise TargetError(f'targets is "label", and the picture {without[0]} has no label that is a class.')
        targets = [[item.label for item in items]]
    else:
        targets = job.targets
    measured, outputs = on_device(job.explainer, inputs, targets, outputs)
    return [
        Measured([one.cpu() for one in maps], [one.cpu() for one in scales], *(one.cpu() for one in rest))
        for maps, scales, *rest in measured
    ], outputs


def _add(job: Job, group: _Group, measured: Measured, scores: torch.Tensor) -> None:
    for layer, maps in zip(job.explainer.layers, measured.maps, strict=True):
        group.maps.setdefault(layer, []).append(maps)
    for layer, scales in zip(job.explainer.layers, measured.scales, strict=bool(measured.scales)):
        group.scales.setdefault(layer, []).append(scales)
    group.scores.append(scores)
