"""One operation of the forward pass, as a rule sees it."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from captum_cav.propagation.marks import tensors_in

if TYPE_CHECKING:
    from captum_cav.propagation.mode import Propagation


class Rule(Protocol):
    """How one operation passes contributions on.

    A rule is any callable that takes an :class:`Operation` and returns what the operation returns: *the same value*,
    but differentiable so that its gradient carries contributions (a *surrogate*).
    """

    def __call__(self, operation: Operation, /) -> Any:
        """Return the operation's value as a surrogate."""
        ...


class Identity(NamedTuple):
    """What a torch function is, apart from its arguments: worked out once a function.

    Attributes:
        name: its plain name, the same for ``torch.relu``, ``Tensor.relu_``, ``F.relu`` and ``aten.relu``; None for a
            function that is not torch's own.
        in_place: whether it writes into its first argument by its name (``relu_``, ``+=``, ``x[i] = y``).
        switch: position of its ``inplace`` argument, None if it has none.
    """

    name: str | None
    in_place: bool
    switch: int | None


_OPERATORS = {
    "div": ("truediv", "true_divide", "divide", "itruediv", "idiv"),
    "rdiv": ("rtruediv",),
    "mul": ("multiply", "rmul", "imul"),
    "sub": ("subtract", "isub"),
    "rsub": (),
    "add": ("radd", "iadd"),
    "pow": ("ipow",),
    "matmul": ("imatmul",),
    "neg": ("negative",),
    "abs": ("absolute",),
    "getitem": (),
    "setitem": (),
}
_PLAIN_NAMES = {alias: name for name, aliases in _OPERATORS.items() for alias in aliases}
_TORCH_MODULES = ("torch._C", "torch.nn", "torch._tensor", "torch.functional", "torch._ops.aten")


@functools.cache
def identify(function: Callable[..., Any]) -> Identity:
    """Identity of a torch function.

    Args:
        function: as ``__torch_function__`` receives it: a method descriptor, a built-in, a function of
            ``torch.nn.functional``, an attribute's getter, an ``aten`` overload.

    Returns:
        Its name, and how it writes in place.

    Example::

        >>> identify(torch.Tensor.add_)
        Identity(name='add', in_place=True, switch=None)
        >>> identify(torch.nn.functional.relu)
        Identity(name='relu', in_place=False, switch=1)
    """
    raw: str = getattr(function, "__name__", "")
    module = getattr(function, "__module__", None)
    if raw == "__get__":
        return Identity(getattr(function.__self__, "__name__", None), False, None)  # type: ignore[attr-defined]
    if isinstance(function, torch._ops.OpOverload):
        module, raw = f"torch._ops.{function.namespace}", function._opname
    native = module is None or module == "torch" or module.startswith(_TORCH_MODULES)
    if not native:
        return Identity(None, False, None)
    switch = None
    if isinstance(function, types.FunctionType):
        parameters = function.__code__.co_varnames[: function.__code__.co_argcount]
        switch = parameters.index("inplace") if "inplace" in parameters else None
    if raw.startswith("__") and raw.endswith("__"):
        plain = raw.strip("_")
        in_place = plain == "setitem" or plain in ("iadd", "isub", "imul", "itruediv", "idiv", "ipow", "imatmul")
    else:
        plain = raw.rstrip("_")
        in_place = plain != raw and plain not in ("requires_grad", "retain_grad")
    return Identity(_PLAIN_NAMES.get(plain, plain), in_place, switch)


def _no_override(*_: object) -> bool:
    return False


@functools.cache
def _body(function: types.FunctionType) -> Callable[..., Any]:
    """The function without its own override check, so that the mode sees the operations inside it."""
    unchecked = dict.fromkeys(
        ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), _no_override
    )
    body = types.FunctionType(
        function.__code__,
        {**function.__globals__, **unchecked},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    body.__kwdefaults__ = function.__kwdefaults__
    return body


class Operation:
    """One call of a torch function in the forward pass, some of whose arguments carry contributions.

    A rule reads its arguments and returns the value built so that gradients carry contributions.

    Attributes:
        name: plain name of the function (``"relu"`` for ``torch.relu_`` and ``F.relu`` alike).
        function: the function that was called.
        args: its positional arguments, parameters detached.
        kwargs: its keyword arguments, parameters detached.
        sources: the tensors among them that depend on the inputs, some of which carry.
        in_place: whether the call writes into its first argument.
        held: identities of carriers that the rule held constant, so that the output does not descend from them.
        written_out: whether the rule ran other operations instead, each of which met a rule of its own.
    """

    __slots__ = ("_propagation", "args", "function", "held", "in_place", "kwargs", "name", "sources", "written_out")

    def __init__(
        self,
        identity: Identity,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sources: Sequence[torch.Tensor],
        in_place: bool,
        propagation: Propagation,
    ) -> None:
        self.name = identity.name or str(getattr(function, "__qualname__", function))
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.sources = sources
        self.in_place = in_place
        self.held: set[int] = set()
        self.written_out = False
        self._propagation = propagation

    def value(self) -> Any:
        """What the function returns, differentiated as torch does."""
        return self.function(*self.args, **self.kwargs)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument given at a position or by name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def carries(self, value: Any) -> bool:
        """Whether a value is a tensor that carries contributions."""
        return isinstance(value, torch.Tensor) and value.requires_grad

    def is_weight(self, value: Any) -> bool:
        """Whether a value is sigmoid- or softmax-like: it weighs what it multiplies."""
        return isinstance(value, torch.Tensor) and self._propagation.is_weight(value)

    def depends_on_inputs(self, value: Any) -> bool:
        """Whether a value holds a tensor that was computed from the inputs."""
        return any(map(self._propagation.depends_on_inputs, tensors_in(value)))

    def hold(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as a constant: a weight, a statistic. It passes no contributions on."""
        self.held.add(id(tensor))
        return tensor.detach()

    @property
    def where(self) -> str:
        """Where in the model it ran, for messages: `` in module 'layer1' (Layer)``, or nothing."""
        return self._propagation.where()

    @property
    def counts_constants(self) -> bool:
        """Whether anyone asked for the shares of constants; measuring them costs a little."""
        return self._propagation.account is not None

    def add_constant(self, output: torch.Tensor, part: torch.Tensor) -> None:
        """Report the part of an output that comes from constants.

        Args:
            output: the operation's output, a carrier.
            part: what it would be if every input were zero; any shape that broadcasts to the output's.
        """
        self._propagation.add_constant(self, output, part)

    def without_inputs(self, value: Any) -> Any:
        """A (nested) argument with every tensor of numbers that depend on the inputs replaced by zeros."""
        if isinstance(value, torch.Tensor):
            # Integers are indices: they say where, and carry nothing.
            numbers = value.is_floating_point() and self._propagation.depends_on_inputs(value)
            return torch.zeros_like(value) if numbers else value
        if type(value) in (tuple, list):
            return type(value)(map(self.without_inputs, value))
        return value

    def inside(self, composite: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function written in torch so that each operation inside it meets its own rule."""
        self.written_out = True
        with self._propagation:
            output = composite(*args, **kwargs)
            return self.args[0].copy_(output) if self.in_place else output

    def reentered(self) -> Any:
        """Run the Python body of this operation so that each operation inside it meets its own rule."""
        if not isinstance(self.function, types.FunctionType):
            raise self._propagation.unsupported(self.name)
        return self.inside(_body(self.function), *self.args, **self.kwargs)

    def gradient(self) -> Any:
        """What an operation without a rule does: refuse, or pass its gradient on with a warning."""
        return self._propagation.handle_unknown(self)


def writes_in_place(identity: Identity, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call writes into its first argument."""
    if identity.in_place or "inplace" in kwargs:
        return identity.in_place or bool(kwargs["inplace"])
    return identity.switch is not None and identity.switch < len(args) and bool(args[identity.switch])
