"""A recording in a file, which runs with torch alone: neither the model's code nor captum_cav is needed."""

from __future__ import annotations

import os
from typing import Any

import torch

from captum_cav.compilation.compiled import Compiled
from captum_cav.errors import CAVTypeError, RecordingError


def save(compiled: Any, path: str | os.PathLike[str]) -> None:
    """Save the recording of a compiled attribution, with its weights, as a file of ``torch.export``.

    ``torch.export.load(path).module()`` loads the file as a module. The module takes the tensors of the recorded call:
    the inputs, the additional tensors, and for a target a tensor of integers of shape (N,). Each integer is the
    position of a sample's score in its flattened output, which for an output of shape (N, classes) is the class. The
    module returns the tensors that ``attribute`` returns, in one tuple. It checks nothing: neither whether inputs and
    results are finite, nor whether a score is negative or near zero.

    Args:
        compiled: what :func:`captum_cav.compile` returned, after one call of ``attribute``. The file holds for inputs
            of the shapes of that call.
        path: where to write the file, such as ``"cav.pt2"``.

    Raises:
        CAVTypeError: for what is no compiled attribution.
        RecordingError: if there is not exactly one recording.

    Example::

        >>> import tempfile, torch
        >>> import captum_cav
        >>> cav = captum_cav.compile(captum_cav.InputCAV(torch.nn.Linear(2, 3, bias=False)))
        >>> ratios = cav.attribute(torch.ones(1, 2), 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(cav, f"{folder}/cav.pt2")
        ...     loaded = torch.export.load(f"{folder}/cav.pt2").module()
        >>> torch.equal(loaded(torch.ones(1, 2), torch.tensor([1]))[0], ratios)
        True
    """
    if not isinstance(compiled, Compiled):
        raise CAVTypeError(
            f"save() was given a {type(compiled).__name__}; expected what captum_cav.compile() returned."
        )
    made = [one for one in compiled._made.values() if one is not None]
    if len(made) != 1:
        raise RecordingError(
            f"the compiled attribution has {len(made)} recordings; expected one. Call attribute() once, for inputs of "
            "the shapes that the file will be used for, and then save."
        )
    recording = made[0].recording
    module = recording.graph.as_module(recording.constants.current(), recording.count_results)
    with torch.no_grad():
        torch.export.save(torch.export.export(module, tuple(recording.examples())), path)
