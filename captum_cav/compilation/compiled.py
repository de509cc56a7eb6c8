"""Attributions that record what they compute, and replay the recording."""

from __future__ import annotations

import functools
import operator
import threading
import warnings
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import torch

from captum_cav import checks
from captum_cav.attribution import InputCAV, LayerCAV, NeuronCAV
from captum_cav.attribution.contributions import ContributionAttribution, has_graph
from captum_cav.attribution.input_checks import Arguments
from captum_cav.compilation.comparing import DeviationError, check_recording
from captum_cav.compilation.keys import key_of
from captum_cav.compilation.recording import Recording, count_samples
from captum_cav.compilation.runners import BACKENDS, Backend, Runner, ways_to_run
from captum_cav.errors import CAVTypeError, OptionError, RecordingError, RecordingWarning
from captum_cav.tensors import is_autocast_on

OnBreak: TypeAlias = Literal["error", "eager"]
A = TypeVar("A", LayerCAV, InputCAV, NeuronCAV)
#: How many kinds of arguments have a recording at the same time. The oldest recording is dropped first.
_MOST = 32


class _Choices(NamedTuple):
    """The options of :func:`compile`."""

    backend: Backend
    dynamic_batch: bool
    freeze: bool
    on_break: OnBreak


class _Made(NamedTuple):
    """A recording that was checked, and what runs it."""

    recording: Recording
    run: Runner


class Compiled(ContributionAttribution):
    """Mixed into the class of an attribution: its passes are recorded once for each kind of arguments."""

    _choices: _Choices
    _made: dict[Hashable, _Made | None]

    def _begin(self, choices: _Choices) -> None:
        self._choices = choices
        self._made = {}
        self._subject: list[Any] = []
        self._lock = threading.RLock()

    def __reduce__(self) -> Any:
        return _compiled, (self._plain(), self._choices)

    def _attributes(self) -> dict[str, Any]:
        """What the attribution was made with: model, layers, options."""
        return {name: value for name, value in vars(self).items() if name not in _OWN}

    def _plain(self) -> ContributionAttribution:
        """The same attribution without recordings."""
        plain: ContributionAttribution = object.__new__(type(self).__mro__[2])
        plain.__dict__.update(self._attributes())
        return plain

    def _explain(self, arguments: Arguments, *options: Any) -> Any:
        """What ``attribute`` returns, by a recording of what the attribution computes."""
        eager = super()._explain
        if has_graph(options[-1]):
            return eager(arguments, *options)
        try:
            made, constants = self._made_for(arguments, options)
        except RecordingError as error:
            if self._choices.on_break == "error":
                raise
            warnings.warn(f"attribute() runs as usual: {error}", RecordingWarning, stacklevel=checks.users_level())
            made = None
        if made is None:
            return eager(arguments, *options)
        results = _run(made.run, [*made.recording.tensors_of(arguments), *constants])
        explained = made.recording.explained(arguments, results)
        return eager(arguments, *options) if explained is None else explained

    def _made_for(self, arguments: Arguments, options: Sequence[Any]) -> tuple[_Made | None, list[torch.Tensor]]:
        """A recording for some arguments, with the parameters and buffers as they are now.

        The recording is None if an earlier call told why there is none.

        Raises:
            RecordingError: if there is none.
        """
        # Torch treats one sample in another way than several, so one sample has a recording of its own.
        samples = count_samples(arguments)
        any_batch = self._choices.dynamic_batch and samples > 1
        key = key_of(arguments, options, samples if any_batch else None)
        subject = list(self._attributes().values())
        if len(subject) != len(self._subject) or not all(map(operator.is_, subject, self._subject)):
            self._made, self._subject = {}, subject
        made = self._made.get(key, _MISSING)
        if made is None:
            return None, []
        if made is not _MISSING and made.recording.is_current():
            constants = made.recording.constants.now()
            if constants is not None:
                return made, constants
        with self._lock:
            self._made.pop(key, None)
            if len(self._made) >= _MOST:
                self._made.pop(next(iter(self._made)), None)
            if self._choices.on_break == "eager":
                self._made[key] = None
            made = self._record(arguments, options, any_batch)
            self._made[key] = made
        return made, made.recording.constants.current()

    def _record(self, arguments: Arguments, options: Sequence[Any], any_batch: bool) -> _Made:
        recording = Recording(self._plain(), arguments, options, frozen=self._choices.freeze, any_batch=any_batch)
        run = self._runner_of(recording, arguments)
        recording.release()
        return _Made(recording, run)

    def _runner_of(self, recording: Recording, arguments: Arguments) -> Runner:
        """The fastest of the ways to run a recording whose results are those of the attribution."""
        backend = self._choices.backend
        ways = ways_to_run(backend, recording)
        for way in ways:
            run = way(recording)
            try:
                check_recording(recording, arguments, functools.partial(_run, run), is_exact=backend == "replay")
            except DeviationError:
                if way is ways[-1]:
                    raise
            else:
                break
        return run


def as_usual(attribution: Any) -> Any:
    """An attribution without its recordings."""
    return attribution._plain() if isinstance(attribution, Compiled) else attribution


def rounding_backend(attribution: Any) -> str | None:
    """What runs the recordings of an attribution, if it rounds in another way than the attribution; else None."""
    if not isinstance(attribution, Compiled) or attribution._choices.backend == "replay":
        return None
    return attribution._choices.backend


_OWN = frozenset({"_choices", "_made", "_subject", "_lock"})
_MISSING: Any = object()


def _run(run: Runner, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Run a recording. The types of its numbers were recorded, too."""
    with ExitStack() as stack:
        for device in {tensor.device.type for tensor in tensors}:
            if is_autocast_on(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        return run(tensors)


@functools.cache
def _compiled_class(kind: type[ContributionAttribution]) -> type[Compiled]:
    return type(f"Compiled{kind.__name__}", (Compiled, kind), {"__doc__": kind.__doc__})


def _compiled(attribution: ContributionAttribution, choices: _Choices) -> Any:
    compiled = object.__new__(_compiled_class(type(attribution)))  # type: ignore[arg-type]
    compiled.__dict__.update(vars(attribution))
    compiled._begin(choices)
    return compiled


def compile(  # noqa: A001 - as torch.compile
    attribution: A,
    *,
    backend: Backend = "replay",
    dynamic_batch: bool = False,
    freeze: bool = False,
    on_break: OnBreak = "error",
) -> A:
    """An attribution that records what it computes, and from then on replays the recording.

    The first call for a kind of arguments records the forward pass, the rules and the backward pass as one graph of
    aten operations. That takes seconds, with ``backend="inductor"`` minutes. Further calls run the graph, without the
    model's Python code and without autograd. The kind of arguments is their structure, shapes, strides, types and
    devices, the options of ``attribute``, and whether a target is given. Another target needs no other recording.

    Each recording is compared with the attribution when it is made, for the recorded input and for another one. A
    replay must have the same bits. Fused kernels and CUDA graphs may differ by 4 times what changes of the inputs in
    their last binary place do to the map, or by 64 units in the last place of its largest number.

    What the model is like is looked at in each call: its modules and their attributes, hooks, and which tensors are its
    parameters and buffers. If that changed, the attribution records anew. What changes inside of an attribute, such as
    a number in a list, is not noticed; compile again after such a change. At most 32 recordings are kept.

    Args:
        attribution: a :class:`captum_cav.LayerCAV`, :class:`captum_cav.InputCAV` or :class:`captum_cav.NeuronCAV`. It
            is not changed.
        backend: what runs the graph. ``"replay"``: its operations one after another. ``"inductor"``: kernels that
            torch's compiler fuses. ``"cudagraphs"``: one CUDA graph, for small batches on a GPU.
        dynamic_batch: whether one recording holds for any number of samples above 1. It needs ``backend="replay"``.
        freeze: whether the numbers of parameters and buffers are part of the recording. Then what hangs on them alone
            is computed once, and inductor can make kernels for them. If those kernels change the map by more than the
            tolerance, only what lies between convolutions and products is fused, as without ``freeze``. If a parameter
            changes, the attribution records anew. By default, parameters are inputs of the graph, so that a model may
            be trained further.
        on_break: what happens if the attribution cannot be recorded: ``"error"`` raises; ``"eager"`` warns, and calls
            with such arguments run as usual.

    Returns:
        An attribution of the same class. ``attribute`` and ``attribute_targets`` replay; with ``create_graph=True``,
        and in ``explain_rules``, it runs as usual. A copy of it, and what comes out of a pickle, records anew.

    Raises:
        CAVTypeError: for what is no attribution.
        OptionError: for a backend that does not exist, or that cannot be combined with ``dynamic_batch``.
        RecordingError: by ``attribute``, for a model whose operations depend on the numbers in the inputs, that takes
            random numbers, writes into its buffers or has hooks; and if a recording does not give the same map. The
            message names the module.

    Example::

        >>> import torch
        >>> from captum_cav import InputCAV
        >>> cav = compile(InputCAV(torch.nn.Linear(2, 3, bias=False)))
        >>> [tuple(cav.attribute(torch.ones(4, 2), target).shape) for target in (0, 2)]     # one recording
        [(4, 2), (4, 2)]
    """
    checks.check_option("backend", backend, BACKENDS)
    checks.check_option("on_break", on_break, ("error", "eager"))
    if not isinstance(attribution, (LayerCAV, InputCAV, NeuronCAV)):
        raise CAVTypeError(
            f"compile() was given a {type(attribution).__name__}; expected a LayerCAV, an InputCAV or a NeuronCAV."
        )
    if dynamic_batch and backend != "replay":
        raise OptionError(
            f'dynamic_batch=True was given with backend="{backend}", whose kernels are made for one size; expected '
            'backend="replay".'
        )
    plain = attribution._plain() if isinstance(attribution, Compiled) else attribution
    compiled: A = _compiled(plain, _Choices(backend, dynamic_batch, freeze, on_break))
    return compiled
