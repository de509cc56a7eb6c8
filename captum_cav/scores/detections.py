"""Scores of networks that detect objects: the class score or a side of one detection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch

from captum_cav import checks
from captum_cav.checks import part_of
from captum_cav.checks.options import as_integer
from captum_cav.errors import CAVTypeError, InputError, OptionError, TargetError
from captum_cav.scores.outputs import Shown, for_each_sample, refuse_output
from captum_cav.tensors import as_tensor

#: What of a detection is explained.
Quantity: TypeAlias = Literal["score", "x1", "y1", "x2", "y2", "width", "height"]
QUANTITIES: tuple[str, ...] = get_args(Quantity)

_CORNERS = ("x1", "y1", "x2", "y2")
_EXPECTED = (
    "a list with a dict of 'boxes' and 'scores' for each sample (torchvision); 'pred_logits' or 'logits' with "
    "'pred_boxes' (DETR); or a tensor of shape (N, 4 + classes, anchors) (YOLO)"
)


class _Found(NamedTuple):
    """What a detector found in one sample.

    Attributes:
        boxes: shape (K, 4): x1, y1, x2, y2.
        sizes: shape (K, 2): width, height. None if the model gives only corners.
        scores: shape (K,), the score of the label of each box; or shape (K, classes).
        labels: shape (K,), or None if each box has a score for each class.
    """

    boxes: torch.Tensor
    sizes: torch.Tensor | None
    scores: torch.Tensor
    labels: torch.Tensor | None


@dataclass(frozen=True, eq=False, repr=False)
class Detection(Shown):
    """The class score, or a side of the box, of one detection.

    Which detection is meant is a constant: the query, anchor or proposal whose box overlaps most with ``box``, or the
    one at a position.

    Torchvision's detectors compute sizes as an exponential times the size of an anchor. An exponential that multiplies
    is a gate, which is a constant, so that width and height then have no contributions. With
    ``rules={torch.mul: rules.ProductRule("halves")}`` gates carry, too.

    Args:
        box: x1, y1, x2, y2, as four numbers, a tensor of shape (4,), or one of shape (N, 4) with a box for each sample.
            The unit is that of the model's boxes: pixels for torchvision and YOLO, shares of the picture's width and
            height for DETR.
        index: the position instead: among the detections of torchvision, the queries of DETR or the anchors of YOLO.
        value: what is explained: ``"score"``, a side ``"x1"``, ``"y1"``, ``"x2"``, ``"y2"``, or ``"width"`` or
            ``"height"`` of the box.
        label: the class. Only detections of this class count for torchvision, whose detections have one class each.
            DETR and YOLO score all classes for each box; without ``label`` the result is one score for each class, of
            which ``target`` selects one.

    Returns of a call:
        Shape (N,), or (N, classes). The output of the model is a list with a dict of ``"boxes"``, ``"scores"`` and
        ``"labels"`` for each sample, as torchvision's detectors return it; an object with ``"pred_logits"`` or
        ``"logits"``, and ``"pred_boxes"`` (centre, width, height), as DETR and transformers return it; or a tensor of
        shape (N, 4 + classes, anchors) (centre, width, height, scores), or a tuple that begins with it, as YOLO returns
        it.

    Raises:
        OptionError, CAVTypeError, InputError: for arguments that cannot be used, and for another kind of output.
        TargetError: if no detection is left, or if none overlaps with the box.

    Example::

        >>> detections = [{
        ...     "boxes": torch.tensor([[0.0, 0.0, 2.0, 2.0], [4.0, 4.0, 8.0, 8.0]]),
        ...     "scores": torch.tensor([0.9, 0.7]),
        ...     "labels": torch.tensor([1, 3]),
        ... }]
        >>> Detection([4, 4, 7, 7])(detections), Detection(index=0, value="x2")(detections)
        (tensor([0.7000]), tensor([2.]))
        >>> Detection([4, 4, 7, 7], label=2)(detections)
        Traceback (most recent call last):
        captum_cav.errors.TargetError: sample 0 has no detection of label 2; expected one of its labels 1, 3.
    """

    box: torch.Tensor | Sequence[float] | None = None
    index: int | None = None
    value: Quantity = "score"
    label: int | None = None

    def __post_init__(self) -> None:
        checks.check_option("value", self.value, QUANTITIES)
        if (self.box is None) == (self.index is None):
            given = "neither box nor index was given" if self.box is None else "both box and index were given"
            raise OptionError(f"{given}; expected one of them, as Detection([x1, y1, x2, y2]) or Detection(index=0).")
        for name, number in (("index", self.index), ("label", self.label)):
            if number is not None and (as_integer(number) is None or int(number) < 0):
                raise OptionError(f"{name} is {number!r}; expected an integer of at least 0.")
        if self.box is not None:
            _check_box(self.box)

    def __call__(self, output: Any) -> torch.Tensor:
        """The scores, see the class."""
        found = _samples_of(output, self)
        boxes: torch.Tensor | None = None
        if self.box is not None:
            boxes = for_each_sample("box", as_tensor(self.box), (4,), len(found)).expand(len(found), 4)
        return torch.stack(
            [self._of_sample(number, one, None if boxes is None else boxes[number]) for number, one in enumerate(found)]
        )

    def _of_sample(self, sample: int, found: _Found, box: torch.Tensor | None) -> torch.Tensor:
        """The value of the detection in one sample: a single number, or one for each class."""
        places = _places(sample, found, self.label)
        if box is None:
            assert self.index is not None
            if self.index >= len(places):
                raise TargetError(
                    f"index is {self.index}, but sample {sample} has {len(places)} detections; expected 0 to "
                    f"{len(places) - 1}."
                )
            place = places[self.index]
        else:
            place = places[_nearest(sample, found.boxes[places], box)]
        if self.value == "score":
            scores = found.scores[place]
            return scores if found.labels is not None or self.label is None else scores[self.label]
        box = found.boxes[place]
        if self.value in _CORNERS:
            return box[_CORNERS.index(self.value)]
        sizes = box[2:] - box[:2] if found.sizes is None else found.sizes[place]
        return sizes[0 if self.value == "width" else 1]


def _check_box(box: Any) -> None:
    """Refuse what is no box.

    Raises:
        CAVTypeError, InputError: with what was given and what was expected.
    """
    try:
        corners = as_tensor(box, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CAVTypeError(f"box is {box!r}; expected four numbers x1, y1, x2, y2.") from error
    if corners.dim() not in (1, 2) or corners.shape[-1] != 4:
        raise InputError(f"box has shape {tuple(corners.shape)}; expected (4,) or (N, 4): x1, y1, x2, y2.")
    if not bool((corners[..., 2:] > corners[..., :2]).all()):
        raise InputError(f"box is {corners.tolist()}; expected x1, y1, x2, y2 with x1 < x2 and y1 < y2.")


def _samples_of(output: Any, score: Any) -> list[_Found]:
    """What a detector found in each sample.

    Args:
        output: what the model returned.
        score: the score, for messages.

    Raises:
        CAVTypeError: for an output of another kind.
    """
    if isinstance(output, (list, tuple)) and output and isinstance(output[0], Mapping):
        if not all({"boxes", "scores"} <= set(one) for one in output):
            refuse_output(output, score, _EXPECTED)
        return [_Found(one["boxes"], None, one["scores"], one.get("labels")) for one in output]
    logits, boxes = part_of(output, "pred_logits", "logits"), part_of(output, "pred_boxes")
    if isinstance(output, (list, tuple)) and output:
        output = output[0]
    if logits is None and isinstance(output, torch.Tensor) and output.dim() == 3 and output.shape[1] > 4:
        boxes, logits = output[:, :4].transpose(1, 2), output[:, 4:].transpose(1, 2)
    if not (isinstance(logits, torch.Tensor) and isinstance(boxes, torch.Tensor)):
        refuse_output(output, score, _EXPECTED)
    centres, sizes = boxes[..., :2], boxes[..., 2:]
    corners = torch.cat([centres - sizes / 2, centres + sizes / 2], -1)
    return [_Found(*one, None) for one in zip(corners.unbind(), sizes.unbind(), logits.unbind(), strict=True)]


def _places(sample: int, found: _Found, label: int | None) -> torch.Tensor:
    """The positions of the detections that count.

    Raises:
        TargetError: if there is none.
    """
    places = torch.arange(len(found.boxes), device=found.boxes.device)
    if not len(places):
        raise TargetError(
            f"sample {sample} has no detection; expected at least one. Keep detections with lower scores: in "
            "torchvision, model.score_thresh = 0.0, or model.roi_heads.score_thresh = 0.0 of a model with two stages."
        )
    if label is None:
        return places
    if found.labels is None:
        if label >= found.scores.shape[1]:
            raise TargetError(f"label is {label}; expected 0 to {found.scores.shape[1] - 1}, the model's classes.")
        return places
    chosen = places[found.labels == label]
    if not len(chosen):
        there = ", ".join(map(str, sorted(set(found.labels.tolist()))))
        raise TargetError(f"sample {sample} has no detection of label {label}; expected one of its labels {there}.")
    return chosen


def _nearest(sample: int, boxes: torch.Tensor, box: torch.Tensor) -> int:
    """The position of the box that overlaps most with another box, by the intersection over the union.

    Args:
        sample: the number of the sample, for messages.
        boxes: shape (K, 4).
        box: shape (4,).

    Raises:
        TargetError: if none overlaps.
    """
    from torchvision.ops import box_iou  # Torchvision takes a second to load, and no other score needs it.

    given = boxes.detach()
    overlaps = box_iou(box[None].to(given), given)[0]
    best = int(overlaps.argmax())
    if not bool(overlaps[best] > 0):
        low, high = given[:, :2].amin(0).tolist(), given[:, 2:].amax(0).tolist()
        raise TargetError(
            f"no detection of sample {sample} overlaps with the box {box.tolist()}; expected a box in the unit of the "
            f"model's boxes, which lie between ({low[0]:.4g}, {low[1]:.4g}) and ({high[0]:.4g}, {high[1]:.4g})."
        )
    return best
