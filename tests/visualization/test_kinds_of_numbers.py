"""What is drawn may require grad, have any type of numbers, and be a tensor or an array; the rest is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.text
import numpy as np
import pytest
import torch
from torch import nn

from captum_cav import visualization
from captum_cav.errors import CAVError
from captum_cav.visualization import Panel
from tests.support.errors import cav_error

PICTURE = torch.linspace(0, 1, 8 * 8 * 3).reshape(8, 8, 3)
MAP = torch.tensor([[0.5, -1.0], [0.25, 2.0]])
NET = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))

DRAW: dict[str, Callable[[Any, Any], Any]] = {
    "show_signed": lambda picture, one: visualization.show_signed(picture, one),
    "show_layers": lambda picture, one: visualization.show_layers(picture, [one], ["a"]),
    "show_classes": lambda picture, one: visualization.show_classes(picture, [[one]], ["a"], ["b"]),
    "show_map": lambda picture, one: visualization.show_map(picture, Panel("a", one)),
    "show_rows": lambda picture, one: visualization.show_rows(picture, [("a", [Panel("b", one, signed=True)])]),
    "show_spectrogram": lambda picture, one: visualization.show_spectrogram(one, one),
    "show_series": lambda picture, one: visualization.show_series(one[0], one[1]),
    "show_tokens": lambda picture, one: visualization.show_tokens(["a", "b"], one[0]),
    "spatial_map": lambda picture, one: visualization.spatial_map(one.reshape(1, 1, 2, 2), (8, 8)),
    "resize_map": lambda picture, one: visualization.resize_map(one, (3, 3)),
    "show_difference": lambda picture, one: visualization.show_difference(
        picture, NET, "0", PICTURE.permute(2, 0, 1)[None], (0, 1), ("a", "b")
    ),
}
KINDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "with a graph": lambda values: values.clone().requires_grad_(),
    "bfloat16": lambda values: values.bfloat16(),
    "bfloat16 with a graph": lambda values: values.bfloat16().requires_grad_(),
    "half": lambda values: values.half(),
    "double": lambda values: values.double(),
    "integers": lambda values: values.round().int(),
    "booleans": lambda values: values > 0.3,
    "array": lambda values: values.numpy(),
    "array of half": lambda values: values.numpy().astype(np.float16),
}
_TENSORS_ONLY = ("show_signed", "show_layers", "show_classes")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DRAW)
def test_a_map_of_any_kind_is_drawn(name: str, kind: str) -> None:
    one = KINDS[kind](MAP)
    if name in _TENSORS_ONLY and not isinstance(one, torch.Tensor):
        with cav_error(TypeError, "expected a tensor"):
            DRAW[name](PICTURE.numpy(), one)
        return
    DRAW[name](PICTURE.numpy(), one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["show_signed", "show_map", "show_rows", "show_difference"])
def test_a_picture_of_any_kind_is_drawn(name: str, kind: str) -> None:
    DRAW[name](KINDS[kind](PICTURE), MAP)


def test_the_pixels_are_the_same_whatever_holds_them() -> None:
    expected = visualization.panels.as_pixels(PICTURE.numpy())
    for kind in ("with a graph", "double", "array"):
        assert np.array_equal(visualization.panels.as_pixels(KINDS[kind](PICTURE)), expected)
    for kind in ("bfloat16 with a graph", "half", "array of half"):
        found = visualization.panels.as_pixels(KINDS[kind](PICTURE))
        assert int(np.abs(found.astype(int) - expected.astype(int)).max()) <= 1


def test_attributions_with_a_graph_are_drawn() -> None:
    figure, axis = visualization.show_signed(PICTURE, MAP[None, None].bfloat16().requires_grad_(), "conv")
    assert axis.get_title().startswith("conv, 2 x 2")
    assert figure.axes


@pytest.mark.parametrize(
    "values",
    [MAP + 0j, MAP.to_sparse(), MAP.to("meta"), torch.quantize_per_tensor(MAP, 0.1, 0, torch.qint8)],
    ids=["complex", "sparse", "meta", "quantized"],
)
@pytest.mark.parametrize("name", ["show_signed", "show_layers", "show_map", "show_rows", "show_spectrogram"])
def test_a_map_that_holds_no_real_numbers_is_refused(name: str, values: torch.Tensor) -> None:
    with cav_error(ValueError, "expected a dense tensor of real numbers"):
        DRAW[name](PICTURE.numpy(), values)


@pytest.mark.parametrize(
    "picture", [PICTURE.to_sparse(), PICTURE.to("meta"), PICTURE + 0j, (255 * PICTURE).int()], ids=str
)
def test_a_picture_that_cannot_be_drawn_is_refused(picture: torch.Tensor) -> None:
    with pytest.raises(CAVError, match="the picture"):
        DRAW["show_signed"](picture, MAP)


@pytest.mark.parametrize(
    ("tokens", "what"),
    [([1, 2], "1 (int)"), (torch.arange(2), "tensor(0) (Tensor)"), ([b"a", b"b"], "(bytes)"), (["a", None], "None")],
    ids=["integers", "tensor", "bytes", "None"],
)
def test_tokens_that_are_no_texts_are_refused(tokens: Any, what: str) -> None:
    with cav_error(TypeError, "tokens holds", what, "expected strings, as tokenizer.convert_ids_to_tokens(ids)"):
        visualization.show_tokens(tokens, MAP[0])


def test_tokens_may_be_an_array_of_texts() -> None:
    visualization.show_tokens(np.array(["a", "b"]), MAP[0])


WITH_NAMES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "show_tokens": ("tokens", lambda names: visualization.show_tokens(names, MAP[0])),
    "show_features": ("names", lambda names: visualization.show_features(names, MAP[0])),
    "show_layers": ("names", lambda names: visualization.show_layers(PICTURE, [MAP, MAP], names)),
    "show_classes": ("classes", lambda names: visualization.show_classes(PICTURE, [[MAP]] * 2, names, ["a"])),
    "show_classes, layers": ("layers", lambda names: visualization.show_classes(PICTURE, [[MAP] * 2], ["a"], names)),
}


@pytest.mark.parametrize("names", [None, 2], ids=str)
@pytest.mark.parametrize("draw", WITH_NAMES)
def test_names_that_are_no_list_are_refused(draw: str, names: Any) -> None:
    what, drawn = WITH_NAMES[draw]
    with cav_error(TypeError, f"{what} is {names!r}", "expected a list"):
        drawn(names)


@pytest.mark.parametrize("draw", WITH_NAMES)
@pytest.mark.parametrize("make", [tuple, iter, dict.fromkeys, np.array], ids=["tuple", "iterator", "keys", "array"])
def test_names_of_any_kind_are_drawn(make: Callable[[list[str]], Any], draw: str) -> None:
    drawn = WITH_NAMES[draw][1]
    texts = [
        [text.get_text() for text in drawn(names)[0].findobj(matplotlib.text.Text)]
        for names in (make(["first", "last"]), ["first", "last"])
    ]
    assert texts[0] == texts[1]
