"""One operation of the forward pass, as a rule sees it."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch.utils._pytree import tree_map

from captum_cav.propagation.account import Ledger
from captum_cav.propagation.kept import Kept
from captum_cav.propagation.marks import NONNEGATIVE, RAW, WEIGHT, Origin, is_number, map_tensors, tensors_in

if TYPE_CHECKING:
    from captum_cav.propagation.mode import Propagation


class Surrogate(Protocol):
    """What stands in for one operation.

    It takes an :class:`Operation` and returns what the operation returns: *the same value*, but differentiable so that
    its gradient carries contributions.
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
    "neg": ("negative",),
    "abs": ("absolute",),
    "getitem": (),
    "setitem": (),
}
# What torch gives under several names, and the names that exported graphs use.
_ALIASES = {
    "acos": ("arccos",),
    "acosh": ("arccosh",),
    "asin": ("arcsin",),
    "asinh": ("arcsinh",),
    "atan": ("arctan",),
    "atan2": ("arctan2",),
    "atanh": ("arctanh",),
    "trunc": ("fix",),
    "floor_divide": ("floordiv", "ifloordiv"),
    "remainder": ("mod", "imod"),
    "sign": ("sgn",),
    "matmul": ("imatmul", "linalg_matmul"),
    "inverse": ("linalg_inv",),
    "matrix_power": ("linalg_matrix_power",),
    "det": ("linalg_det",),
    "sigmoid": ("special_expit",),
    "erf": ("special_erf",),
    "erfc": ("special_erfc",),
    "erfinv": ("special_erfinv",),
    "expm1": ("special_expm1",),
    "exp2": ("special_exp2",),
    "log1p": ("special_log1p",),
    "logit": ("special_logit",),
    "lgamma": ("special_gammaln",),
    "digamma": ("special_digamma", "special_psi"),
    "round": ("special_round",),
    "sinc": ("special_sinc",),
    "xlogy": ("special_xlogy",),
    "softmax": ("_softmax", "special_softmax"),
    "log_softmax": ("_log_softmax", "special_log_softmax"),
    "logsumexp": ("special_logsumexp",),
    "grid_sample": ("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"),
    "affine_grid": ("affine_grid_generator",),
    "view": ("_unsafe_view", "_reshape_alias"),
    "getitem": ("index", "_unsafe_index"),
    "to": ("_to_copy",),
    "embedding_bag": ("_embedding_bag", "_embedding_bag_forward_only"),
    "split": ("unsafe_split",),
    "split_with_sizes": ("unsafe_split_with_sizes",),
    "chunk": ("unsafe_chunk",),
    "grouped_mm": ("_grouped_mm",),
    "sparse_mm": ("_sparse_mm", "smm", "hsmm", "dsmm"),
}
# Methods whose names end as those that write in place.
_CALLED_SO = frozenset(["requires_grad_"])
_WRITING_OPERATORS = frozenset("iadd isub imul itruediv idiv ipow imatmul ifloordiv imod".split())
_COPYING = """
    alias as_strided detach diagonal expand narrow permute select slice split split_with_sizes squeeze t transpose
    unbind unfold unsqueeze view view_as_complex view_as_real
""".split()
_PLAIN_NAMES = {
    **{alias: name for table in (_OPERATORS, _ALIASES) for name, aliases in table.items() for alias in aliases},
    **{f"{name}_copy": name for name in _COPYING},
}
_TORCH_MODULES = (
    "torch._C",
    "torch.nn",
    "torch._tensor",
    "torch.functional",
    "torch._ops.aten",
    "torch._ops.torchvision",
)


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
    if raw == "__set__":
        return Identity("__set__", True, None)
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
        in_place = plain == "setitem" or plain in _WRITING_OPERATORS
    else:
        plain = raw if raw in _CALLED_SO else raw.rstrip("_")
        in_place = plain != raw
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
        origin: what the rule leaves for the rule of the operation that takes the output; None for nothing.
    """

    __slots__ = (
        "_propagation",
        "args",
        "function",
        "held",
        "in_place",
        "kwargs",
        "name",
        "origin",
        "sources",
        "written_out",
    )

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
        self.held: frozenset[int] = frozenset()
        self.written_out = False
        self.origin: Origin | None = None
        self._propagation = propagation

    def value(self) -> Any:
        """What the function returns, differentiated as torch does."""
        return self.function(*self.args, **self.kwargs)

    def evaluate(self, x: torch.Tensor) -> Any:
        """What the function returns for a tensor in the place of its first argument."""
        return self.evaluator()(x)

    def evaluator(self) -> Callable[[torch.Tensor], Any]:
        """What evaluates the function as :meth:`evaluate` does; a rule may keep it, since it holds no graph."""
        function, others = self.function, self.args[1:]
        options = {key: value for key, value in self.kwargs.items() if key != "input"} if self.kwargs else {}
        return lambda x: function(x, *others, **options)

    def by_default(self) -> Any:
        """The value as the operation's default rule builds it."""
        return self._propagation.by_default(self)

    def stopped(self) -> Any:
        """The value as a constant: contributions go no further."""
        if not self.in_place:
            return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, self.value())
        target = self.args[0]
        value = self.function(target.detach().clone(), *self.args[1:], **self.kwargs).detach()
        target.copy_(value)
        self.add_constant(target, value)
        return target

    def on(self, stand_ins: dict[int, torch.Tensor]) -> Operation:
        """The same operation on other tensors in the place of some of its own, which are given by their identity."""

        def stand_in(tensor: torch.Tensor) -> torch.Tensor:
            return stand_ins.get(id(tensor), tensor)

        return Operation(
            Identity(self.name, False, None),
            self.function,
            map_tensors(stand_in, self.args),
            {key: map_tensors(stand_in, value) for key, value in self.kwargs.items()},
            [stand_in(tensor) for tensor in self.sources],
            self.in_place,
            self._propagation,
        )

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
        return isinstance(value, torch.Tensor) and self._propagation.has_trait(value, WEIGHT)

    def is_nonnegative(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is known to have no value below 0."""
        return self._propagation.has_trait(tensor, NONNEGATIVE)

    @property
    def is_at_input(self) -> bool:
        """Whether no layer with weights lies between the inputs and the operation."""
        return all(self._propagation.has_trait(tensor, RAW) for tensor in self.sources)

    def origin_of(self, tensor: Any) -> Origin | None:
        """What the rule of the operation that made a tensor left for this one, or None."""
        return self._propagation.origin_of(tensor)

    def keep(self, tensor: torch.Tensor) -> Kept:
        """A tensor's value for the backward pass, as it is now whatever the model writes over it."""
        return Kept(tensor.clone()) if self.in_place else self._propagation.keep(tensor)

    def let_zeros_carry(self) -> None:
        """Note that the rule gives shares to units of value 0."""
        self._propagation.notes.zeros_carry = True

    def ledger(self) -> Ledger:
        """Where a rule reports shares of constants that the backward pass itself computes; it may keep it."""
        return self._propagation.ledger(self)

    def depends_on_inputs(self, value: Any) -> bool:
        """Whether a value holds a tensor that was computed from the inputs."""
        return any(map(self._propagation.depends_on_inputs, tensors_in(value)))

    def hold(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as a constant: a weight, a statistic. It passes no contributions on."""
        self.held |= {id(tensor)}
        return tensor.detach()

    @property
    def where(self) -> str:
        """Where in the model it ran, for messages, as `` in module 'layer1' (Layer)``, or nothing."""
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

        def without(tensor: torch.Tensor) -> torch.Tensor:
            # Integers are indices: they say where, and carry nothing.
            numbers = is_number(tensor) and self._propagation.depends_on_inputs(tensor)
            return torch.zeros_like(tensor) if numbers else tensor

        return map_tensors(without, value)

    def inside(self, composite: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function written in torch so that each operation inside it meets its own rule."""
        self.written_out = True
        with self._propagation.paused(False), self._propagation:
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


class ModuleCall(Operation):
    """A module's whole call as one operation; what runs inside is not seen."""

    __slots__ = ("_output", "module")

    def __init__(
        self,
        module: torch.nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sources: Sequence[torch.Tensor],
        output: Any,
        propagation: Propagation,
    ) -> None:
        identity = Identity(type(module).__name__, False, None)
        super().__init__(identity, module.forward, args, kwargs, sources, False, propagation)
        self.module = module
        self._output = output

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument given at a position, or in that order by name: a module may call its input what it likes."""
        given = [*self.args, *self.kwargs.values()]
        return given[position] if position < len(given) else default

    def value(self) -> Any:
        """What the module returned, differentiated as torch does."""
        return self._output

    def evaluate(self, x: torch.Tensor) -> Any:
        """What the module returned: its first argument has not changed."""
        return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, self._output)

    def by_default(self) -> Any:
        """A module has no default as one operation: what it returned, differentiated as torch does."""
        return self._output


def writes_in_place(identity: Identity, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call writes into its first argument."""
    if identity.in_place or "inplace" in kwargs:
        return identity.in_place or bool(kwargs["inplace"])
    return identity.switch is not None and identity.switch < len(args) and bool(args[identity.switch])
