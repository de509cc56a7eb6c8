"""Disable features inside a mask and look at the scores: what the maps say, put to the test (the paper's figure 8).

A contribution says what a place gave to the score as the network computed it; an ablation says what the network
computes without the place. Behind the last activation the two agree, wherever only linear operations follow; elsewhere
the network may answer in other ways than the map says, and that is what to look for.
"""

from __future__ import annotations

import itertools
import operator
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

from captum_cav import checks
from captum_cav.errors import CAVTypeError, InputError, LayerError, OptionError, TargetError
from captum_cav.maps import spatial_map
from captum_cav.tensors import tensors_in

__all__ = ["Ablation", "Standing", "ablate", "box_mask", "positive_spots", "resize_mask"]

By: TypeAlias = Literal["zero", "mean", "blur"]
_BY = {"zero": "set to zero", "mean": "set to the mean of all places", "blur": "blurred"}


@dataclass(frozen=True)
class Standing:
    """How one class stands before and after.

    Attributes:
        index: of the class among the scores.
        name: of the class, "class 17" where it has none.
        score_before, score_after: its scores.
        rank_before, rank_after: its place among all classes, 1 for the highest score.
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
    """Scores before and after features were disabled; prints itself.

    Attributes:
        layer: where, as messages call it: "the input" or "layer 'features.12'".
        by: ``"zero"``, ``"mean"`` or ``"blur"``.
        mask: shape (N, h, w) at the layer's resolution, True where features were disabled.
        before: shape (N, classes), the scores of the model as it is.
        after: shape (N, classes), the scores with the features disabled.
        targets: classes that the tables show wherever they rank.
        class_names: names of the classes in the order of the scores; may be empty.
    """

    layer: str
    by: By
    mask: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    targets: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()

    def score_changes(self, classes: Sequence[int] | None = None) -> torch.Tensor:
        """By how much scores rose, the score after less the score before.

        Args:
            classes: indices of classes; all if None.

        Returns:
            Shape (N, classes).
        """
        return self._chosen(self.after - self.before, classes)

    def rank_changes(self, classes: Sequence[int] | None = None) -> torch.Tensor:
        """By how many ranks classes fell, the rank after less the rank before: above 0 where others overtook it.

        Args:
            classes: indices of classes; all if None.

        Returns:
            Integers of shape (N, classes).
        """
        return self._chosen(_ranks(self.after) - _ranks(self.before), classes)

    def standings(self, classes: Sequence[int], sample: int = 0) -> list[Standing]:
        """How some classes stand before and after.

        Args:
            classes: indices of classes.
            sample: which sample.

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
            k: how many.
            sample: which sample.

        Returns:
            The best classes before, and the best after, each from the best on.
        """
        before, after = (
            self.standings(scores[sample].argsort(descending=True, stable=True)[:k].tolist(), sample)
            for scores in (self.before, self.after)
        )
        return before, after

    def to_markdown(self, k: int = 10, sample: int = 0) -> str:
        """The best classes before and after as a Markdown table, and below it the targets.

        Args:
            k: how many classes.
            sample: which sample.

        Returns:
            The table.
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
        """What was disabled, in words: "20 of 49 places of layer 'head' set to zero"."""
        mask = self.mask[sample]
        return f"{int(mask.sum())} of {mask.numel()} places of {self.layer} {_BY[self.by]}"

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
        return values if classes is None else values[:, list(_check_classes(classes, values.shape[1]))]


def ablate(
    forward_func: Callable[..., Any],
    inputs: Any,
    layer: torch.nn.Module | str | None,
    mask: Any,
    *,
    by: By = "zero",
    targets: int | Sequence[int] = (),
    class_names: Sequence[str] = (),
    additional_forward_args: Any = None,
    call: int | None = None,
) -> Ablation:
    """Disable the features of a layer inside a mask, and compare the scores before and after.

    The model runs twice, under ``torch.no_grad()`` and with the same random numbers; for the second run a forward hook
    replaces the layer's output. Nothing is left on the model, whether this returns or raises, and other threads that
    run it meanwhile do not meet the hook.

    Args:
        forward_func: the model, or any callable that returns scores of shape (N, classes) or (N,).
        inputs: pictures of shape (N, C, H, W), or a tuple of the model's inputs, the first of which are the pictures.
        layer: a module or its qualified name, whose output has places: shape (N, C, h, w), (N, h, w, C) or
            (N, tokens, C), the tokens a grid with any few class tokens before it, which are left alone. None for the
            pictures themselves.
        mask: booleans of shape (h, w), one for each place of the layer, or (H, W), one for each pixel, True where
            features are disabled; or one such mask a sample, in a first dimension. A mask of pixels is brought to the
            layer's resolution by :func:`resize_mask`. All places may be disabled, but not none.
        by: what stands in the mask instead. ``"zero"``: 0 in each channel, no activation (of a picture, whatever pixel
            its preprocessing makes 0, often grey). ``"mean"``: each channel's mean over all places. ``"blur"``: the
            layer under a Gaussian whose standard deviation is a sixteenth of its height, at least one place.
        targets: classes that the tables show wherever they rank.
        class_names: names of the classes in the order of the scores.
        additional_forward_args: further arguments of ``forward_func``, a tuple or a single one.
        call: which call of a layer that the forward pass reaches several times: 0 for the first, -1 for the last.

    Returns:
        An :class:`Ablation`, which prints itself.

    Raises:
        InputError: for inputs or a mask that do not fit, and for a mask that selects no place.
        LayerError: for a layer that is unknown, is not reached exactly once, or has no places.
        ModelError: for a model in training mode, or scores that are not finite.
        CAVTypeError, OptionError, TargetError: for other arguments that cannot be used.

    Source: Kakishita and Hattori, figure 8 and table 1.

    Example::

        >>> net = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.AvgPool2d(2), torch.nn.Flatten())
        >>> picture = torch.tensor([[[[4., 0.], [0., 8.]], [[2., 2.], [0., 0.]]]])       # two channels, two classes
        >>> print(ablate(net, picture, "0", [[False, False], [False, True]], class_names=("rain", "sun")))
        1 of 4 places of layer '0' set to zero
          rank  before     score  after      score  rank before
             1  rain       3.000  rain       1.000            1
             2  sun        1.000  sun        1.000            2
    """
    forward_func = checks.check_model(forward_func)
    checks.check_evaluation(forward_func)
    if by not in _BY:
        raise OptionError(f'by is {by!r}; expected "zero", "mean" or "blur".')
    given = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    size = _picture_size(given)
    additional = () if additional_forward_args is None else additional_forward_args
    arguments = (*given, *(additional if isinstance(additional, tuple) else (additional,)))
    if layer is None:
        name, module, values = "the input", None, given[0]
        before = _scores(forward_func, arguments)
    else:
        found_name, module = checks.find_layer(forward_func, layer)
        name = f"layer {found_name}"
        outputs: list[Any] = []
        before = _scores(forward_func, arguments, module, lambda _, output: outputs.append(output))
        call = _one_call(call, len(outputs), name)
        values = _values(outputs[call], name)
    places = _places(_like_maps(values, size, name), mask, size, name)
    if len(before) != len(places):
        raise InputError(f"the model returned scores of {len(before)} samples for {len(places)}; expected as many.")

    def disable(values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        maps = _like_maps(values, size, name)
        maps.copy_(torch.where(places[:, None], replacement(maps, by), maps))
        return values

    if module is None:
        after = _scores(forward_func, (disable(values), *arguments[1:]))
    else:
        after = _scores(
            forward_func,
            arguments,
            module,
            lambda number, output: (
                tree_map(lambda leaf: disable(leaf) if _is_values(leaf) else leaf, output) if number == call else None
            ),
        )
    names = tuple(class_names)
    if names and len(names) != before.shape[1]:
        raise InputError(f"class_names lists {len(names)} names for {before.shape[1]} classes; expected one for each.")
    chosen = _check_classes((targets,) if not isinstance(targets, Sequence) else targets, before.shape[1])
    return Ablation(name, by, places, before, after, chosen, names)


def box_mask(box: Sequence[float], size: tuple[int, int]) -> torch.Tensor:
    """The pixels of a box.

    Args:
        box: (left, top, right, bottom), right and bottom excluded: integers are pixels; where one of the four is a
            float, all are fractions of the picture's width and height.
        size: (height, width) of the picture.

    Returns:
        Booleans of shape (height, width), True in the box.

    Raises:
        InputError: for a box that holds no pixel or reaches beyond the picture.

    Example::

        >>> box_mask((0.5, 0.0, 1.0, 0.5), (2, 4)).long()
        tensor([[0, 0, 1, 1],
                [0, 0, 0, 0]])
        >>> bool((box_mask((2, 0, 4, 1), (2, 4)) == box_mask((0.5, 0.0, 1.0, 0.5), (2, 4))).all())
        True
    """
    if len(box) != 4:
        raise InputError(f"the box has {len(box)} numbers; expected left, top, right, bottom.")
    height, width = size
    edges = [float(edge) for edge in box]
    if any(isinstance(edge, float) for edge in box):
        edges = [edge * length for edge, length in zip(edges, (width, height) * 2, strict=True)]
    left, top, right, bottom = (round(edge) for edge in edges)
    inside = min(edges) >= 0 and edges[2] <= width and edges[3] <= height
    if not (inside and left < right and top < bottom):
        raise InputError(
            f"the box {tuple(box)} holds no pixels of a picture of width {width} and height {height}, or reaches "
            "beyond it; expected left < right and top < bottom, as integers (pixels) or with a float among them "
            "(fractions)."
        )
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def positive_spots(contributions: torch.Tensor, share: float | None = None, *, above: float = 0.0) -> torch.Tensor:
    """The places that raised the score most.

    Args:
        contributions: shape (h, w) or (N, h, w), a map whose positive places raised the score, as from
            ``LayerCAV(..., normalize="abs")`` and :func:`captum_cav.visualization.spatial_map`.
        share: which share of a map's positive part the places are to carry, above 0 and at most 1; they are the fewest
            that carry it. None for all places above a threshold.
        above: the threshold, where no share is given: places with a larger contribution are taken.

    Returns:
        Booleans of the same shape. Where nothing is positive, all are False.

    Raises:
        OptionError: for a share that is none.

    Example::

        >>> contributions = torch.tensor([[0.5, -0.2], [0.3, 0.1]])
        >>> positive_spots(contributions, 0.8).long()             # 0.5 and 0.3 of 0.9
        tensor([[1, 0],
                [1, 0]])
        >>> positive_spots(contributions).long()
        tensor([[1, 0],
                [1, 1]])
    """
    if share is None:
        return contributions > above
    if not 0 < share <= 1:
        raise OptionError(f"share is {share!r}; expected a number above 0 and at most 1.")
    positive = contributions.detach().double().clamp(min=0).flatten(-2)
    ordered, order = positive.sort(dim=-1, descending=True, stable=True)
    missing_before = ordered.sum(-1, keepdim=True) * share - (ordered.cumsum(-1) - ordered)
    # A sum's last digits are no reason to take one place more.
    taken = missing_before > 1e-9 * ordered.sum(-1, keepdim=True)
    return torch.zeros_like(taken).scatter(-1, order, taken).reshape(contributions.shape)


def resize_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A mask at another resolution, by area: a place is in it if more than half of what it covers is.

    A place covers the pixels from ``floor(i * H / h)`` to ``ceil((i + 1) * H / h)``, as in adaptive average pooling.
    One that is half in, as the middle row of an odd grid under half a picture, is out.

    Args:
        mask: booleans of shape (H, W) or (N, H, W).
        size: (h, w).

    Returns:
        Booleans of shape (h, w) or (N, h, w).

    Example::

        >>> resize_mask(box_mask((0, 0, 4, 3), (4, 4)), (2, 2)).long()  # of the lower places just half are in
        tensor([[1, 1],
                [0, 0]])
    """
    covered = F.adaptive_avg_pool2d(mask.double().reshape(-1, 1, *mask.shape[-2:]), size)
    return (covered > 0.5).reshape(*mask.shape[:-2], *size)


def _scores(
    forward_func: Callable[..., Any],
    arguments: tuple[Any, ...],
    module: torch.nn.Module | None = None,
    act: Callable[[int, Any], Any] | None = None,
) -> torch.Tensor:
    """The scores, shape (N, classes). Each output of the module goes through ``act``, with the number of its call."""
    thread, numbers = threading.get_ident(), itertools.count()

    def hook(_: torch.nn.Module, __: Any, output: Any) -> Any:
        return act(next(numbers), output) if act and threading.get_ident() == thread else None

    # The model may write into what it is given, and draw random numbers.
    arguments = _copied(arguments)
    cuda = sorted({tensor.device.index for tensor in tensors_in(list(arguments)) if tensor.is_cuda})
    hooked = module.register_forward_hook(hook) if module is not None else nullcontext()
    with hooked, torch.no_grad(), torch.random.fork_rng(devices=cuda):
        output = checks.check_output(forward_func(*arguments)).detach()
    if output.dim() > 2:
        raise InputError(
            f"the model returned scores of shape {tuple(output.shape)}; expected (N, classes). Pass a function that "
            "picks them, as forward_func=lambda x: model(x)[:, 0]."
        )
    checks.check_finite_results("the score is", output, forward_func, arguments)
    return output.unsqueeze(1) if output.dim() == 1 else output


def _copied(value: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, value)


def _picture_size(given: tuple[Any, ...]) -> tuple[int, int]:
    if not given or not _is_values(given[0]) or given[0].dim() != 4:
        first: Any = given[0] if given else given
        is_tensor = isinstance(first, torch.Tensor)
        what = f"a {first.dtype} tensor of shape {tuple(first.shape)}" if is_tensor else f"a {type(first).__name__}"
        raise InputError(
            f"inputs is {what}; expected floating-point pictures of shape (N, C, H, W), or a tuple of them."
        )
    height, width = given[0].shape[2:]
    return height, width


def _is_values(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def _one_call(call: int | None, reached: int, name: str) -> int:
    """The number of the call of a layer that is meant."""
    if not reached:
        raise LayerError(f"{name} was not reached by the forward pass; pick one that this input runs through.")
    if call is None and reached > 1:
        raise LayerError(f"{name} was reached {reached} times; say which is meant by call=0 to {reached - 1}.")
    if not -reached <= (call or 0) < reached:
        raise LayerError(f"call is {call}, but {name} was reached {reached} times; expected 0 to {reached - 1}.")
    return range(reached)[call or 0]


def _values(output: Any, name: str) -> torch.Tensor:
    """The one tensor among what a layer gives."""
    found = [tensor for tensor in tensors_in(output) if _is_values(tensor)]
    if len(found) != 1:
        raise LayerError(f"{name} gives {len(found)} tensors; pick one that gives one, a module inside it for example.")
    return found[0]


def _like_maps(values: torch.Tensor, size: tuple[int, int], name: str) -> torch.Tensor:
    """A view of what a layer gives as maps of shape (N, C, h, w)."""
    try:
        grid = spatial_map(values, size).shape[1:]
    except InputError as error:
        raise LayerError(
            f"{name} gives values of shape {tuple(values.shape)}, which have no places to disable in pictures of "
            f"{size[0]} x {size[1]} pixels; pick a layer of maps or of a grid of tokens."
        ) from error
    if values.dim() == 3:
        tokens = values[:, values.shape[1] - grid.numel() :]
        maps: torch.Tensor = tokens.mT.unflatten(2, grid)  # type: ignore[no-untyped-call]
        return maps
    return values if values.shape[2:] == grid else values.permute(0, 3, 1, 2)


def _places(maps: torch.Tensor, mask: Any, size: tuple[int, int], name: str) -> torch.Tensor:
    """The mask at the layer's resolution, shape (N, h, w), on its device."""
    mask = torch.as_tensor(mask, device=maps.device)
    if mask.dtype != torch.bool:
        raise CAVTypeError(f"mask holds {mask.dtype}; expected booleans, as mask > threshold or positive_spots(map).")
    samples, grid = len(maps), (maps.shape[2], maps.shape[3])
    if mask.dim() not in (2, 3) or mask.shape[-2:] not in (grid, size) or mask.shape[:-2] not in ((), (samples,)):
        raise InputError(
            f"mask has shape {tuple(mask.shape)}; expected {grid}, the places of {name}, or {size}, the picture's "
            f"pixels (or one such mask for each of {samples} samples). resize_mask brings other masks to either."
        )
    places = mask if mask.shape[-2:] == grid else resize_mask(mask, grid)
    places = places.expand(samples, *grid)
    empty = (~places.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        why = "" if mask.shape[-2:] == grid else ", since most of what a place covers has to be in it"
        raise InputError(f"mask selects none of the {grid[0]} x {grid[1]} places of {name} in sample {empty[0]}{why}.")
    return places


def replacement(maps: torch.Tensor, by: By) -> torch.Tensor:
    if by == "zero":
        return torch.zeros_like(maps)
    if by == "mean":
        return maps.mean((2, 3), keepdim=True)
    from torchvision.transforms import functional as pictures

    deviation = max(maps.shape[2] / 16, 1.0)
    # What lies beyond the borders is reflected, and no more than the map itself can be.
    kernel = [2 * min(int(2 * deviation), length - 1) + 1 for length in reversed(maps.shape[2:])]
    blurred: torch.Tensor = pictures.gaussian_blur(maps, kernel, [deviation] * 2)
    return blurred


def _ranks(scores: torch.Tensor) -> torch.Tensor:
    """Of each class, 1 for the highest score; equal scores rank in the order of the classes."""
    return scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) + 1


def _check_classes(classes: Sequence[int], count: int) -> tuple[int, ...]:
    checked = []
    for index in classes:
        try:
            number = operator.index(index)
        except TypeError as error:
            raise CAVTypeError(f"a class is {index!r} ({type(index).__name__}); expected its index.") from error
        if not 0 <= number < count:
            raise TargetError(f"there is no class {number}: the model gives {count} scores, 0 to {count - 1}.")
        checked.append(number)
    return tuple(checked)


def _number(score: float) -> str:
    return f"{score:#.4g}"


def _escaped(name: str) -> str:
    return " ".join(name.split()).replace("\\", "\\\\").replace("|", "\\|")
