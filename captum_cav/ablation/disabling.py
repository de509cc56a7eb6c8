"""The ablation itself: two runs of the model, the second with some features of a layer replaced."""

from __future__ import annotations

import functools
import itertools
import json
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from captum_cav import checks
from captum_cav.ablation.masks import resize_mask
from captum_cav.ablation.result import BY, Ablation, By
from captum_cav.errors import CAVTypeError, InputError, LayerError, OptionError
from captum_cav.maps import sequence_channels, spatial_map
from captum_cav.tensors import as_tensor, tensors_in
from captum_cav.torch_internals import tree_map


def ablate(
    forward_func: Callable[..., Any],
    inputs: Any,
    layer: torch.nn.Module | str | None,
    mask: Any,
    *,
    by: By | float = "zero",
    channels: int | None = None,
    targets: int | Sequence[int] = (),
    class_names: Sequence[str] = (),
    additional_forward_args: Any = None,
    call: int | None = None,
) -> Ablation:
    """Disable the features of a layer inside a mask, and compare the scores before and after.

    The model runs twice, under ``torch.no_grad()`` and with the same random numbers. In the second run a forward hook
    replaces the output of the layer. The hook is always removed, also after an error. Other threads that run the model
    at the same time are not affected.

    Args:
        forward_func: the model, or any callable that returns scores of shape (N, classes) or (N,).
        inputs: pictures of shape (N, C, H, W), volumes or videos (N, C, D, H, W), signals (N, C, T) or (N, T, C),
            series (N, T), token ids, integers of shape (N, T), or a tuple of the inputs of the model that begins with
            one of these.
        layer: a module or its qualified name; None for the inputs. The output of the layer has places: its shape is
            (N, C, h, w), (N, h, w, C) or (N, tokens, C). Tokens form a grid, behind a few class tokens or none; class
            tokens stay as they are. For volumes the shape is (N, C, d, h, w) or (N, d, h, w, C). For signals, series
            and token ids the shape is (N, C, t), (N, t, C) or (N, t).
        mask: booleans, True where features are disabled. Shape (h, w), one for each place of the layer, or (H, W), one
            for each pixel; or a mask for each sample, of shape (N, h, w) or (N, H, W). :func:`resize_mask` brings a
            mask of pixels to the resolution of the layer. For volumes, a mask has a depth in front of the height. For
            signals, series and token ids a mask has the shape (t,) or (T,), or (N, t) or (N, T). At least one place
            must be selected.
        by: what replaces the features in the mask. ``"zero"``: 0 in each channel, which means no activation; in a
            picture it means the pixel that preprocessing turns into 0, often grey. ``"mean"``: the mean of each channel
            over all places. ``"blur"``: the features smoothed by a Gaussian whose standard deviation is a sixteenth of
            the height of the layer (or of its length), but at least one place; along the depth of a volume, a sixteenth
            of the depth. A number: this number. If the ids of tokens are disabled (``layer=None``), the id of the mask
            token or of the padding; at the embedding, ``"zero"`` is an embedding of zeros.
        channels: the dimension of the channels of signals and sequences: 1 for (N, C, t), -1 for (N, t, C). None is 1
            for the inputs; at a layer the dimension that has not the length of the inputs, and -1 for token ids.
        targets: classes that the tables always show, whatever their rank.
        class_names: names of the classes in the order of the scores.
        additional_forward_args: further arguments of ``forward_func``, a tuple or a single argument.
        call: which call of the layer is meant if the forward pass reaches the layer several times: 0 for the first, -1
            for the last.

    Returns:
        An :class:`Ablation`, which prints as a table.

    Raises:
        InputError: for inputs or a mask that do not fit, and for a mask that selects no place.
        LayerError: for a layer that is unknown, is not reached, or has no places, and for a layer that is reached
            several times without ``call``.
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
    checks.check_scripted(forward_func)
    checks.check_evaluation(forward_func)
    _check_by(by)
    call = checks.check_call(call)
    given = checks.as_inputs(inputs)
    first = given[0] if given else given
    layout = checks.check_layout(first, 1 if channels is None else channels)
    size = layout.size
    arguments = (*given, *checks.additional_arguments(additional_forward_args))
    _check_samples(given[0], mask, layout)
    if channels is None and (layer is None or checks.is_ids(first)):
        channels = layout.channels if layer is None else -1
    if layer is None:
        name, module, values = "the input", None, given[0]
        _check_replaces(by, values)
        before = _scores(forward_func, arguments)
    else:
        found_name, module = checks.find_layer(forward_func, layer)
        name = f"layer {found_name}"
        outputs: list[Any] = []
        before = _scores(forward_func, arguments, module, lambda _, output: outputs.append(output))
        call = checks.choose_call(found_name, len(outputs), call)
        values = _values(outputs[call], name)
    places = _places(_like_maps(values, size, name, channels), mask, size, name)
    if len(before) != len(places):
        raise InputError(
            f"the model returned scores of {len(before)} samples for {len(places)}; expected the same number."
        )

    def disable(values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        maps = _like_maps(values, size, name, channels)
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
                tree_map(lambda leaf: disable(leaf) if checks.is_floating(leaf) else leaf, output)
                if number == call
                else None
            ),
        )
    names = tuple(class_names)
    if names and len(names) != before.shape[1]:
        raise InputError(f"class_names lists {len(names)} names for {before.shape[1]} classes; expected one for each.")
    chosen = checks.check_classes((targets,) if not isinstance(targets, Sequence) else targets, before.shape[1])
    return Ablation(name, by, places, before, after, chosen, names)


def _scores(
    forward_func: Callable[..., Any],
    arguments: tuple[Any, ...],
    module: torch.nn.Module | None = None,
    act: Callable[[int, Any], Any] | None = None,
) -> torch.Tensor:
    """The scores of one run of the model.

    Args:
        forward_func: the model.
        arguments: of the model.
        module: a module to hook, or None.
        act: called with the number of each call of the module and with its output; what it returns replaces the output,
            unless it is None.

    Returns:
        Shape (N, classes).
    """
    thread, numbers = threading.get_ident(), itertools.count()

    def hook(_: torch.nn.Module, __: Any, output: Any) -> Any:
        return act(next(numbers), output) if act and threading.get_ident() == thread else None

    # The model may write into its arguments, and may draw random numbers.
    arguments = checks.copied(arguments)
    cuda = sorted({tensor.device.index for tensor in tensors_in(list(arguments)) if tensor.is_cuda})
    hooked = module.register_forward_hook(hook) if module is not None else nullcontext()
    with hooked, torch.no_grad(), torch.random.fork_rng(devices=cuda):
        output = checks.check_output(forward_func(*arguments)).detach()
    if output.dim() > 2:
        raise InputError(
            f"the model returned scores of shape {tuple(output.shape)}; expected (N, classes). Pass a function that "
            "picks them, as forward_func=lambda x: model(x)[:, 0]."
        )
    checks.check_finite_results("the score is", output, forward_func, functools.partial(forward_func, *arguments))
    return output.unsqueeze(1) if output.dim() == 1 else output


def _check_by(by: Any) -> None:
    if isinstance(by, bool) or not (isinstance(by, int | float) or by in BY):
        raise OptionError(f"by is {by!r}; expected {', '.join(map(json.dumps, BY))}, or a number.")


def _check_samples(inputs: torch.Tensor, mask: Any, layout: checks.Layout) -> None:
    """Refuse a picture without the dimension of the samples, which looks like signals, before the model refuses it."""
    shape = tuple(as_tensor(mask).shape)
    if len(layout.size) == 1 and len(shape) == 2 and shape[0] != len(inputs):
        raise InputError(
            f"inputs of shape {tuple(inputs.shape)} are {len(inputs)} samples of {layout.size[0]} places, and mask has "
            f"shape {shape}; expected pictures of shape (N, C, H, W) with such a mask: inputs[None] is one picture."
        )


def _check_replaces(by: Any, values: torch.Tensor) -> None:
    """Refuse what cannot replace token ids."""
    if checks.is_ids(values) and not isinstance(by, int):
        raise OptionError(
            f"by is {by!r} for token ids; expected the id that replaces the tokens, such as tokenizer.mask_token_id or "
            "tokenizer.pad_token_id. To set embeddings to zero, pass the embedding as the layer."
        )


def _values(output: Any, name: str) -> torch.Tensor:
    """The only floating-point tensor in the output of a layer."""
    found = [tensor for tensor in tensors_in(output) if checks.is_floating(tensor)]
    if len(found) != 1:
        raise LayerError(
            f"{name} gives {len(found)} tensors; pick a layer that gives one tensor, such as a module inside it."
        )
    return found[0]


def _like_maps(values: torch.Tensor, size: tuple[int, ...], name: str, channels: int | None) -> torch.Tensor:
    """The values of a layer as maps of shape (N, C, h, w), (N, C, d, h, w) or (N, C, t), in the same memory.

    Args:
        values: shape (N, C, h, w), (N, h, w, C) or (N, tokens, C); of volumes (N, C, d, h, w) or (N, d, h, w, C); of
            sequences (N, C, t), (N, t, C) or (N, t).
        size: (height, width) of the pictures, (depth, height, width) of the volumes, or (length,) of the sequences.
        name: of the layer, for messages.
        channels: the dimension of the channels of sequences, or None if nobody told.
    """
    if len(size) == 1:
        try:
            dimension = sequence_channels(values.shape, size[0], channels)
        except InputError as error:
            raise LayerError(
                f"{name} cannot be disabled place by place; expected a layer with clear places: {error}"
            ) from error
        return values.unsqueeze(1) if dimension is None else values.movedim(dimension, 1)
    try:
        grid = spatial_map(values, size).shape[1:]
    except InputError as error:
        raise LayerError(
            f"{name} gives values of shape {tuple(values.shape)}, which have no places to disable in pictures of "
            f"{' x '.join(map(str, size))} pixels; pick a layer of maps or of a grid of tokens."
        ) from error
    if values.dim() == 3:
        tokens = values[:, values.shape[1] - grid.numel() :]
        maps: torch.Tensor = tokens.mT.unflatten(2, grid)  # type: ignore[no-untyped-call]
        return maps
    return values if values.shape[2:] == grid else values.movedim(-1, 1)


def _places(maps: torch.Tensor, mask: Any, size: tuple[int, ...], name: str) -> torch.Tensor:
    """The mask at the resolution and on the device of a layer.

    Args:
        maps: shape (N, C, h, w), (N, C, d, h, w) or (N, C, t), the values of the layer.
        mask: in any of the forms that :func:`ablate` takes.
        size: (height, width) of the pictures, (depth, height, width) of the volumes, or (length,) of the sequences.
        name: of the layer, for messages.

    Returns:
        Booleans of shape (N, h, w), (N, d, h, w) or (N, t).
    """
    mask = torch.as_tensor(mask, device=maps.device)
    if mask.dtype != torch.bool:
        raise CAVTypeError(f"mask holds {mask.dtype}; expected booleans, as mask > threshold or positive_spots(map).")
    samples, grid, sides = len(maps), tuple(maps.shape[2:]), len(size)
    if mask.shape[-sides:] not in (grid, size) or mask.shape[:-sides] not in ((), (samples,)):
        raise InputError(
            f"mask has shape {tuple(mask.shape)}; expected {grid}, the places of {name}, or {size}, the "
            f"{'places' if sides == 1 else 'pixels'} of the input (or one such mask for each of {samples} samples). "
            "resize_mask brings other masks to either."
        )
    places = mask if mask.shape[-sides:] == grid else resize_mask(mask, grid)
    places = places.expand(samples, *grid)
    empty = (~places.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        why = "" if mask.shape[-sides:] == grid else ", because the mask must cover more than half of a place"
        raise InputError(
            f"mask selects none of the {' x '.join(map(str, grid))} places of {name} in sample {empty[0]}{why}."
        )
    return places


def replacement(maps: torch.Tensor, by: By | float) -> torch.Tensor:
    """What replaces the features of a layer.

    Args:
        maps: shape (N, C, h, w), (N, C, d, h, w) or (N, C, t), the features.
        by: as for :func:`ablate`.

    Returns:
        A tensor that broadcasts to the shape of the features.
    """
    if not isinstance(by, str):
        return torch.full_like(maps, by)
    if by == "zero":
        return torch.zeros_like(maps)
    if by == "mean":
        return maps.mean(tuple(range(2, maps.dim())), keepdim=True)
    from torchvision.transforms import functional as pictures

    def blurred(maps: torch.Tensor, deviation: float, lengths: Sequence[int]) -> torch.Tensor:
        # The blur mirrors the map at its borders, so the kernel must not reach further than the map.
        kernel = [2 * min(int(2 * deviation), length - 1) + 1 for length in reversed(lengths)]
        found: torch.Tensor = pictures.gaussian_blur(maps, kernel, [deviation] * 2)
        return found

    if maps.dim() == 3:
        # The moments as one row of a picture.
        return blurred(maps[:, :, None], max(maps.shape[2] / 16, 1.0), (1, maps.shape[2]))[:, :, 0]
    of_plane = max(maps.shape[-2] / 16, 1.0)
    if maps.dim() == 4:
        return blurred(maps, of_plane, maps.shape[2:])
    slices = blurred(maps.flatten(0, 1), of_plane, maps.shape[3:])
    # The places of a slice as one row, which is not blurred: only the depth is.
    depth = maps.shape[2]
    return blurred(slices.flatten(2)[:, None], max(depth / 16, 1.0), (depth, 1)).reshape(maps.shape)
