"""The result of an ablation: scores and ranks of classes before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from captum_cav.checks import check_classes

By: TypeAlias = Literal["zero", "mean", "blur"]
#: What may replace the features, and the words of reports for it.
BY: dict[By, str] = {"zero": "set to zero", "mean": "set to the mean of all places", "blur": "blurred"}


@dataclass(frozen=True)
class Standing:
    """The score and rank of one class before and after an ablation.

    Attributes:
        index: the index of the class among the scores.
        name: the name of the class; "class 17" if no names were given.
        score_before, score_after: the scores of the class.
        rank_before, rank_after: the ranks of the class among all classes, 1 for the highest score.
    """

    index: int
    name: str
    score_before: float
    score_after: float
    rank_before: int
    rank_after: int

    def __str__(self) -> str:
        change = self.score_after - self.score_before
        return (
            f"{self.name}: score {_number(self.score_before)} -> {_number(self.score_after)} ({change:+#.3g}), "
            f"rank {self.rank_before} -> {self.rank_after}"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Ablation:
    """Scores before and after features were disabled, which print as a table.

    Attributes:
        layer: where features were disabled, as reports name it: "the input" or "layer 'features.12'".
        by: what replaced the features: ``"zero"``, ``"mean"``, ``"blur"`` or a number.
        mask: shape (N, h, w), (N, d, h, w) or (N, t) at the resolution of the layer, True where features were disabled.
        before: shape (N, classes), the scores without ablation.
        after: shape (N, classes), the scores with the features disabled.
        targets: classes that the tables always show, whatever their rank.
        class_names: names of the classes in the order of the scores; may be empty.
    """

    layer: str
    by: By | float
    mask: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    targets: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()

    def score_changes(self, classes: Sequence[int] | None = None) -> torch.Tensor:
        """How much scores rose: the scores after minus the scores before.

        Args:
            classes: indices of classes; all if None.

        Returns:
            Shape (N, classes).
        """
        return self._chosen(self.after - self.before, classes)

    def rank_changes(self, classes: Sequence[int] | None = None) -> torch.Tensor:
        """How many ranks classes fell: the ranks after minus the ranks before, above 0 if other classes overtook.

        Args:
            classes: indices of classes; all if None.

        Returns:
            Integers of shape (N, classes).
        """
        return self._chosen(_ranks(self.after) - _ranks(self.before), classes)

    def standings(self, classes: Sequence[int], sample: int = 0) -> list[Standing]:
        """Scores and ranks of some classes before and after.

        Args:
            classes: indices of classes.
            sample: the index of the sample.

        Returns:
            One :class:`Standing` for each class.
        """
        both = (self.before[sample], self.after[sample])
        values = [self._chosen(row[None], classes)[0].tolist() for row in (*both, *map(_ranks, both))]
        names = [self.class_names[index] if self.class_names else f"class {index}" for index in classes]
        return [Standing(*row) for row in zip(classes, names, *values, strict=True)]

    def top(self, k: int = 10, sample: int = 0) -> tuple[list[Standing], list[Standing]]:
        """The best classes before and after (the paper's table 1).

        Args:
            k: how many classes.
            sample: the index of the sample.

        Returns:
            The ``k`` best classes before and the ``k`` best classes after, the best class first.
        """
        before, after = (
            self.standings(scores[sample].argsort(descending=True, stable=True)[:k].tolist(), sample)
            for scores in (self.before, self.after)
        )
        return before, after

    def to_markdown(self, k: int = 10, sample: int = 0) -> str:
        """The best classes before and after as a Markdown table, and the targets below the table.

        Args:
            k: how many classes.
            sample: the index of the sample.

        Returns:
            The text.
        """
        lines = [
            f"| rank | before | score | {self.described(sample)} | score | rank before |",
            "|--:|---|--:|---|--:|--:|",
        ]
        for rank, (old, new) in enumerate(zip(*self.top(k, sample), strict=True), 1):
            lines.append(
                f"| {rank} | {_escaped(old.name)} | {_number(old.score_before)} "
                f"| {_escaped(new.name)} | {_number(new.score_after)} | {new.rank_before} |"
            )
        if self.targets:
            lines += ["", *(f"- {_escaped(str(target))}" for target in self.standings(self.targets, sample))]
        return "\n".join(lines)

    def described(self, sample: int = 0) -> str:
        """What was disabled, in words.

        Args:
            sample: the index of the sample.

        Returns:
            Text such as "20 of 49 places of layer 'head' set to zero".
        """
        mask = self.mask[sample]
        how = BY[self.by] if isinstance(self.by, str) else f"set to {self.by:g}"
        return f"{int(mask.sum())} of {mask.numel()} places of {self.layer} {how}"

    def __str__(self) -> str:
        before, after = self.top()
        width = max(len("before"), *(len(one.name) for one in (*before, *after)))
        more = f" (sample 0 of {len(self.before)})" if len(self.before) > 1 else ""
        lines = [
            f"{self.described()}{more}",
            f"  rank  {'before':{width}}     score  {'after':{width}}     score  rank before",
        ]
        for rank, (old, new) in enumerate(zip(before, after, strict=True), 1):
            lines.append(
                f"  {rank:4d}  {old.name:{width}}  {_number(old.score_before):>8}  {new.name:{width}}  "
                f"{_number(new.score_after):>8}  {new.rank_before:11d}"
            )
        lines += [f"  {target}" for target in self.standings(self.targets)]
        return "\n".join(lines)

    __repr__ = __str__

    def _chosen(self, values: torch.Tensor, classes: Sequence[int] | None) -> torch.Tensor:
        return values if classes is None else values[:, list(check_classes(classes, values.shape[1]))]


def _ranks(scores: torch.Tensor) -> torch.Tensor:
    """The rank of each class, 1 for the highest score. Classes with equal scores rank in the order of the classes."""
    return scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) + 1


def _number(score: float) -> str:
    return f"{score:#.4g}"


def _escaped(name: str) -> str:
    return " ".join(name.split()).replace("\\", "\\\\").replace("|", "\\|")
