"""Contribution ratios computed a second time, by other means than the package's: an oracle for its answers.

The function is traced to a graph of elementary operations (aten), views and writes in place done away with. A walk
backwards then maps the coefficient of each operation's output to coefficients of its inputs, one stated rule per
operation:

* linear operations, normalisations with their standard deviation held, and choices (maximum, sorting, ``where``,
  relu): the vector-Jacobian product;
* elementwise functions: output over input;
* products: all to the factor that is no *weight* where exactly one is, else one half to each factor that depends on
  the input. Weights are what sigmoid, softmax, exponentials, reciprocals and negative powers return, sigmoids written
  out with tanh, erf or clipping, and what is made of weights. The product of a weight and a constant is a constant
  where the constant is one of each sample: one of a batched matrix product, or one that is not broadcast;
* quotients: all to the dividend; solutions of linear systems: all to the right-hand side; samples: all to what is
  sampled.

Nothing here comes from ``captum_cav``, so that agreement means something. An operation without a rule is an error.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch._subclasses.functional_tensor import FunctionalTensor, dispatch_functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

Coefficients = list[torch.Tensor | None]
"""One for each output of an operation; None where nothing flows."""

LINEAR = frozenset(
    """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _conj _fft_c2c _fft_c2r _fft_r2c _reshape_alias _to_copy _unsafe_index
    _unsafe_index_put _unsafe_view add alias as_strided as_strided_scatter avg_pool1d avg_pool2d avg_pool3d block_diag
    cat channel_shuffle clone col2im conj_physical constant_pad_nd cumsum diag_embed diagonal diagonal_scatter
    embedding expand fft_fftshift fft_ifftshift fill flip gather im2col imag index
    index_add index_copy index_put index_select lerp lift_fresh lift_fresh_copy masked_fill masked_scatter masked_select
    mean native_channel_shuffle native_dropout neg permute pixel_shuffle pixel_unshuffle real reflection_pad1d
    reflection_pad2d reflection_pad3d repeat replication_pad1d replication_pad2d replication_pad3d resolve_conj
    resolve_neg roll rot90 rsub scatter scatter_add select select_scatter slice slice_scatter split split_with_sizes
    squeeze stack sub sum t take trace transpose tril triu unbind unfold unsafe_chunk unsafe_split
    unsafe_split_with_sizes unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_trilinear3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d view view_as_complex view_as_real
    """.split()
)
"""Operations that are linear in all of their floating-point arguments together, but for those of FIXED."""

FIXED = {"lerp": 2}
"""The argument in which an operation of LINEAR is not linear: it must not depend on the input."""

SAMPLES = frozenset("grid_sampler_2d grid_sampler_3d linalg_solve_triangular roi_align".split())
"""Operations that are linear in one argument, which carries; the others say where, or are divided by."""

CHOICES = frozenset(
    """
    adaptive_max_pool2d adaptive_max_pool3d amax amin aminmax cummax cummin fmax fmin fractional_max_pool2d
    fractional_max_pool3d kthvalue max max_pool2d_with_indices max_pool3d_with_indices maximum median min minimum mode
    msort nanmedian relu sort topk where
    """.split()
)

CLAMPS = frozenset("clamp clamp_max clamp_min".split())

GATES = frozenset(
    "_safe_softmax _softmax exp exp2 hardsigmoid reciprocal rsqrt sigmoid sign softplus special_ndtr".split()
)
"""Activations that return weights, whatever they are given; so do negative powers and quotients of constants."""

NOT_NEGATIVE = frozenset("abs exp exp2 relu sigmoid softplus sqrt square".split())
"""Of what these return, tanh and erf are sigmoids."""

ACTIVATIONS = frozenset(
    """
    _log_softmax _prelu_kernel acos acosh asin asinh atan atanh ceil celu cos cosh elu erf erfc expm1 floor
    gelu hardshrink hardswish hardtanh leaky_relu log log10 log1p log2 log_sigmoid_forward logit mish pow round
    rrelu_with_noise_functional silu sin sinc sinh softshrink sqrt square tan tanh threshold trunc
    """.split()
)

OF_ELEMENTS = (ACTIVATIONS | GATES | CLAMPS | {"abs", "relu"}) - {"_log_softmax", "_safe_softmax", "_softmax"}
"""Functions of single elements. Those between layers begin anew: what follows does not belong to them."""

BETWEEN_LAYERS = CLAMPS | frozenset(
    "_prelu_kernel abs celu elu gelu hardshrink hardswish hardtanh leaky_relu mish relu silu threshold".split()
)

SUMS_WITH_A_NUMBER = frozenset("add rsub sub".split())

PRODUCTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys("bmm convolution dot linalg_cross linear matmul mm mul mv vdot".split(), (0, 1)),
    **dict.fromkeys("addbmm addcmul addmm addmv addr baddbmm".split(), (1, 2)),
    "_trilinear": (0, 1, 2),
}
"""Operations that multiply, with the positions of the factors; any other argument is added."""

NORMS = frozenset("abs linalg_vector_norm norm std std_mean var var_mean".split())
"""Homogeneous operations: of degree 1, or 2 where the name starts with ``var``."""

NORMALIZATIONS = frozenset(
    """
    _native_batch_norm_legit _native_batch_norm_legit_functional _native_batch_norm_legit_no_training
    native_batch_norm native_group_norm native_layer_norm
    """.split()
)

CONSTANTS = frozenset(
    """
    detach empty_like empty_strided full_like new_empty new_empty_strided new_full new_ones new_zeros ones_like
    rand_like randn_like zeros_like
    """.split()
)
"""Operations whose output is not made of their input's values, or at which contributions stop."""

PRESERVING = (
    LINEAR
    | CHOICES
    | CLAMPS
    | NORMALIZATIONS
    | PRODUCTS.keys()
    | frozenset("copy cumprod glu linalg_vector_norm norm pow prod sqrt square std".split())
)
"""Operations that make weights of weights."""

KNOWN = PRESERVING | ACTIVATIONS | GATES | NORMS | SAMPLES | {"addcdiv", "div"}


class UnknownOperationError(NotImplementedError):
    """The function runs an operation for which the oracle has no rule."""


def exact_map(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, target: int | tuple[int, ...]
) -> torch.Tensor:
    """The contribution ratios of the input.

    Args:
        function: the network, at rest (evaluation mode) and in the input's precision.
        x: a floating-point batch of shape (N, ...); float64 where the answer is to be exact.
        target: the index, or indices, of the score in each sample's output.

    Returns:
        Input times coefficient over score, of the input's shape.

    Raises:
        UnknownOperationError: for an operation without a rule.
    """
    where: tuple[int | slice, ...] = (slice(None), *(target if isinstance(target, tuple) else (target,)))
    with torch.no_grad():
        # First as it is: some networks keep what they compute in their first pass, which must not be tracing tensors.
        score = function(x.detach().clone())[where]
    if score.shape != x.shape[:1]:
        raise ValueError(f"one score a sample is needed, not scores of shape {tuple(score.shape)}")
    graph = _Graph(_trace(lambda inputs: function(inputs)[where], x), x)
    torch.testing.assert_close(
        graph.score, score, equal_nan=True, msg="the traced function is not the function: is it at rest?"
    )
    return x.detach() * graph.coefficient() / score.reshape(-1, *[1] * (x.dim() - 1))


class _Constants(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What a function needs while it is traced beyond operations on what it is given.

    Numbers may be read off tensors, and are constants then, like what is detached. What is computed from parameters
    alone is wrapped as the input is, so that it may be written to.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FunctionalTensor):
            with _disable_current_modes():
                return args[0].from_functional().item()
        output = func(*args, **(kwargs or {}))
        return output if func._schema.is_mutable else pytree.tree_map_only(torch.Tensor, _wrapped, output)


def _wrapped(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if isinstance(tensor, FunctionalTensor) else FunctionalTensor.to_functional(tensor)


class _Attention(TorchFunctionMode):
    """Attention's weights, whatever they are made of, are constants: contributions pass through the values only."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            fixed = {
                name: given[name].detach() for name in ("query", "key", "attn_mask") if given.get(name) is not None
            }
            return func(**{**given, **fixed})
        return func(*args, **(kwargs or {}))


def _trace(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> GraphModule:
    def readable(inputs: torch.Tensor) -> torch.Tensor:
        with _Constants(), _Attention():  # type: ignore[no-untyped-call]
            return function(inputs)

    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operation for a whole encoder layer
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # attention as elementary operations
            return make_fx(dispatch_functionalize(readable), decomposition_table={}, tracing_mode="real")(
                x.detach().clone()
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@dataclasses.dataclass
class _Operation:
    """One call in the graph, with the values of its arguments.

    Attributes:
        overload: what is called.
        values, spec: the arguments, flat, and how they are nested.
        sources: by position in ``values``, the node of each argument that depends on the input.
        weights: by the same positions, whether the argument is a weight.
    """

    overload: torch._ops.OpOverload
    values: list[Any]
    spec: pytree.TreeSpec
    sources: dict[int, Node]
    weights: dict[int, bool]

    @property
    def name(self) -> str:
        return str(self.overload.overloadpacket.__name__)

    def run(self, values: list[Any] | None = None) -> Any:
        args, kwargs = pytree.tree_unflatten(self.values if values is None else values, self.spec)
        return self.overload(*args, **kwargs)

    def argument(self, name: str, default: Any = None) -> Any:
        """The value of an argument by its name in the schema."""
        args, kwargs = pytree.tree_unflatten(self.values, self.spec)
        names = [argument.name for argument in self.overload._schema.arguments]
        return {**dict(zip(names, args, strict=False)), **kwargs}.get(name, default)

    def only(self, *positions: int) -> None:
        """Raises if another argument than these depends on the input."""
        if not self.sources.keys() <= set(positions):
            raise self.unknown(f"argument {max(self.sources.keys() - set(positions))} depends on the input")

    def unknown(self, why: str = "") -> UnknownOperationError:
        return UnknownOperationError(f"no rule for {self.overload}" + (f": {why}" if why else ""))

    def is_weight(self) -> bool:
        if self.name in GATES:
            return True
        if self.name == "pow":
            exponent = self.values[1]
            return 1 not in self.sources and bool((torch.as_tensor(exponent) < 0).all())
        if self.name == "div":
            return (
                0 not in self.sources or self.weights[0]
            )  # a constant times a reciprocal, or a weight over a constant
        if self.name == "add" and self._number(1) >= 1 and self._is_made_by("tanh", "erf"):
            return True
        if self.name in ("tanh", "erf") and self._is_made_by(*NOT_NEGATIVE):
            return True
        if self.name in ("clamp", "hardtanh") and self.argument("min", self.argument("min_val")) == 0:
            (source,) = self.sources.values()
            if self._is_made_by("add") and any(isinstance(value, (int, float)) for value in source.args[:2]):
                return True
        return self.name in PRESERVING and all(self.weights.values())

    def is_constant(self) -> bool:
        """Whether a weight is multiplied with a constant of each sample, and nothing else depends on the input."""
        factors = PRODUCTS.get(self.name, ())
        if len(self.sources) != 1 or not all(self.weights.values()) or not self.sources.keys() <= set(factors):
            return False
        (constant,) = (self.values[position] for position in factors if position not in self.sources)
        if self.name in ("bmm", "baddbmm"):
            return True
        if self.name != "mul" or not isinstance(constant, torch.Tensor) or not constant.is_floating_point():
            return False
        return constant.dim() > 1 and constant.shape == self.run().shape

    def _number(self, position: int) -> float:
        value = self.values[position]
        return float(value) if isinstance(value, (int, float)) else 0.0

    def _is_made_by(self, *names: str) -> bool:
        """Whether the only argument that depends on the input is what one of these returned."""
        made = [getattr(node.target, "overloadpacket", None) for node in self.sources.values()]
        return len(made) == 1 and getattr(made[0], "__name__", "") in names

    def vjp(self, coefficients: Coefficients, positions: Iterable[int]) -> dict[int, torch.Tensor]:
        """The vector-Jacobian products for the arguments at ``positions``, each by itself."""
        values = [value.detach() if isinstance(value, torch.Tensor) else value for value in self.values]
        leaves = {position: values[position].requires_grad_() for position in positions}
        with torch.enable_grad():
            outputs = _listed(self.run(values))
        pairs = [(output, c) for output, c in zip(outputs, coefficients, strict=True) if c is not None]
        gradients = torch.autograd.grad(
            [output for output, _ in pairs], list(leaves.values()), [c for _, c in pairs], allow_unused=True
        )
        return {position: g for position, g in zip(leaves, gradients, strict=True) if g is not None}


def _rule(operation: _Operation, value: Any, coefficients: Coefficients) -> dict[int, torch.Tensor]:
    """Coefficients of an operation's arguments, by position, of those of its outputs."""
    name = operation.name
    if name in LINEAR or name in CHOICES:
        if name in FIXED:
            operation.only(*set(operation.sources) - {FIXED[name]})
        return operation.vjp(coefficients, operation.sources)
    if name in SAMPLES:
        carries = 1 if name == "linalg_solve_triangular" else 0
        return operation.vjp(coefficients, [carries] if carries in operation.sources else [])
    if name in ACTIVATIONS or name in GATES or name in CLAMPS:
        return _activation(operation, value, coefficients)
    if name in PRODUCTS:
        return _product(operation, coefficients)
    if name in NORMALIZATIONS:
        return _normalization(operation, value, coefficients)
    if name in NORMS:
        # The means that come along are linear.
        halved = [
            c / 2 if c is not None and name.startswith("var") and i == 0 else c for i, c in enumerate(coefficients)
        ]
        return operation.vjp(halved, operation.sources)
    if name == "div":
        return _quotient(operation, value, coefficients)
    if name == "addcdiv":
        if 2 in operation.sources and 1 not in operation.sources:
            raise operation.unknown("only the divisor depends on the input")
        return operation.vjp(coefficients, operation.sources.keys() - {2})
    if name == "glu":
        return _glu(operation, coefficients)
    if name == "copy":  # the destination's values are lost; PyTorch has no derivative for it
        source, (coefficient,) = operation.values[1], coefficients
        if 1 not in operation.sources or coefficient is None:
            return {}
        return {1: coefficient.sum_to_size(source.shape).to(source.dtype)}
    raise operation.unknown()


def _activation(operation: _Operation, value: Any, coefficients: Coefficients) -> dict[int, torch.Tensor]:
    position = min(operation.sources)
    operation.only(position if operation.name == "pow" else 0)
    x, y, coefficient = operation.values[position], _listed(value)[0], coefficients[0]
    if coefficient is None or any(c is not None for c in coefficients[1:]) or x.is_complex():
        raise operation.unknown("of complex numbers, or of its second output")
    near = x.abs() < torch.finfo(x.dtype).eps
    ratio = y / torch.where(near, 1, x)
    if near.any():
        # At zero the ratio is the derivative, where the function is zero there.
        at_zero = dataclasses.replace(operation, values=list(operation.values))
        at_zero.values[position] = torch.zeros_like(x)
        zero = _listed(at_zero.run())[0]
        slope = at_zero.vjp([torch.ones_like(y), *coefficients[1:]], [position]).get(position, torch.zeros_like(x))
        ratio = torch.where(near, torch.where((zero == 0) & slope.isfinite(), slope, 0), ratio)
    return {position: (coefficient * ratio).sum_to_size(x.shape)}


def _product(operation: _Operation, coefficients: Coefficients) -> dict[int, torch.Tensor]:
    factors = [position for position in PRODUCTS[operation.name] if position in operation.sources]
    shares = dict.fromkeys(operation.sources, 1.0)
    if len(factors) > 2:
        raise operation.unknown("three factors depend on the input")
    if len(factors) == 2:
        first, second = (operation.weights[position] for position in factors)
        shares.update(zip(factors, (float(second), float(first)) if first != second else (0.5, 0.5), strict=True))
    carrying = [position for position, share in shares.items() if share]
    return {i: shares[i] * gradient for i, gradient in operation.vjp(coefficients, carrying).items()}


def _quotient(operation: _Operation, value: torch.Tensor, coefficients: Coefficients) -> dict[int, torch.Tensor]:
    if operation.argument("rounding_mode") is not None:
        raise operation.unknown("a rounded quotient")
    if 0 in operation.sources:
        return operation.vjp(coefficients, [0])
    divisor, coefficient = operation.values[1], coefficients[0]
    if coefficient is None or divisor.is_complex():
        raise operation.unknown("of complex numbers")
    return {1: (coefficient * value / divisor).sum_to_size(divisor.shape)}


def _glu(operation: _Operation, coefficients: Coefficients) -> dict[int, torch.Tensor]:
    """The first half times the sigmoid of the second, which is a weight; the first half may be one too."""
    (coefficient,), dim = coefficients, operation.argument("dim", -1)
    assert coefficient is not None
    first, second = operation.values[0].chunk(2, dim)
    gate = second.sigmoid()
    if not operation.weights[0]:
        return {0: torch.cat([coefficient * gate, torch.zeros_like(second)], dim)}
    near = second.abs() < torch.finfo(second.dtype).eps
    through = torch.where(near, 0, gate / torch.where(near, 1, second))
    return {0: torch.cat([coefficient * gate / 2, coefficient * first * through / 2], dim)}


def _normalization(operation: _Operation, value: Any, coefficients: Coefficients) -> dict[int, torch.Tensor]:
    """Deviation from the mean over a standard deviation that counts as constant."""
    operation.only(0)
    coefficient, x, weight = coefficients[0], operation.argument("input"), operation.argument("weight")
    if coefficient is None or any(c is not None for c in coefficients[1:]):
        raise operation.unknown("of its second output")
    per_channel = [1, -1, *[1] * (x.dim() - 2)]
    if operation.name == "native_layer_norm":
        dims = list(range(-len(operation.argument("normalized_shape")), 0))
        scaled = coefficient * value[2] * (1 if weight is None else weight)
        return {0: scaled - scaled.mean(dims, keepdim=True)}
    if weight is not None:
        coefficient = coefficient * weight.view(per_channel)
    if operation.name == "native_group_norm":
        grouped = coefficient.reshape(*value[2].shape, -1) * value[2].unsqueeze(-1)
        return {0: (grouped - grouped.mean(-1, keepdim=True)).reshape(x.shape)}
    if operation.argument("training", False):
        scaled = coefficient * value[2].view(per_channel)
        return {0: scaled - scaled.mean([0, *range(2, x.dim())], keepdim=True)}
    return {0: coefficient * (operation.argument("running_var") + operation.argument("eps")).rsqrt().view(per_channel)}


class _Graph:
    """Values of a traced graph, and the walk backwards through it.

    Attributes:
        score: the graph's output.
    """

    def __init__(self, module: GraphModule, x: torch.Tensor) -> None:
        self._input, *self._calls, output = module.graph.nodes
        self._values: dict[Node, Any] = {self._input: x.detach()}
        self._weight = {self._input: False}  # has a key for all that depends on the input
        with torch.no_grad():
            for node in self._calls:
                if node.op == "get_attr":
                    self._values[node] = operator.attrgetter(str(node.target))(module)
                else:
                    self._run(node)
        (self._output,) = output.all_input_nodes
        self.score: torch.Tensor = self._values[self._output]

    def _run(self, node: Node) -> None:
        operation = self._operation(node)
        value = self._values[node] = operation.run()
        if not operation.sources or not any(_is_differentiable(output) for output in _listed(value)):
            return
        if node.target is operator.getitem:
            self._weight[node] = operation.weights[0]
        elif operation.is_constant():
            return
        elif operation.name not in CONSTANTS:
            if operation.name not in KNOWN:
                raise operation.unknown()
            self._weight[node] = operation.is_weight()

    def _operation(self, node: Node) -> _Operation:
        assert node.op == "call_function"
        flat, spec = pytree.tree_flatten((node.args, node.kwargs))
        sources = {
            i: argument for i, argument in enumerate(flat) if isinstance(argument, Node) and argument in self._weight
        }
        return _Operation(
            overload=node.target,  # type: ignore[arg-type]
            values=[self._values[argument] if isinstance(argument, Node) else argument for argument in flat],
            spec=spec,
            sources=sources,
            weights={i: self._weight[argument] for i, argument in sources.items()},
        )

    def coefficient(self) -> torch.Tensor:
        """The coefficient of the input; takes the graph's values with it."""
        flowing: dict[Node, Coefficients] = {}
        if self._output in self._weight:
            flowing[self._output] = [torch.ones_like(self.score)]
        for node in reversed(self._calls):
            if node in flowing:
                for source, index, coefficient in self._step(node, flowing.pop(node)):
                    slots = flowing.setdefault(source, [None] * len(_listed(self._values[source])))
                    before = slots[index]
                    slots[index] = coefficient if before is None else before + coefficient
            del self._values[node]
        (result,) = flowing.get(self._input, [None])
        return torch.zeros_like(self._values[self._input]) if result is None else result

    def _beginning(self, node: Node) -> tuple[Node, bool]:
        """Where a function of single elements begins, with numbers as its only constants.

        A number that is added before any other function is a constant, and the function begins behind this number.

        Returns:
            The node before, or the node itself; whether the function is ``k x``.
        """
        before_clip = self._before_hard_sigmoid(node)
        if before_clip is not None:
            return before_clip, False
        inner = self._inner(node)
        if inner is None:
            return node, True
        name, (base, is_multiple) = inner
        ends = name in BETWEEN_LAYERS or (name in SUMS_WITH_A_NUMBER and is_multiple)
        return (node, True) if ends else (base, is_multiple and name not in OF_ELEMENTS)

    def _inner(self, node: Node) -> tuple[str, tuple[Node, bool]] | None:
        """The name of a function of single elements, and the beginning of its only argument that is no number."""
        if node.op != "call_function" or node not in self._weight:
            return None
        name = _name_of(node)
        (first, *others), _ = pytree.tree_flatten((node.args, node.kwargs))
        is_of_one = (
            isinstance(first, Node) and first in self._weight and not any(isinstance(one, Node) for one in others)
        )
        if not is_of_one or name not in OF_ELEMENTS | SUMS_WITH_A_NUMBER | {"mul", "div", "neg"}:
            return None
        return name, self._beginning(first)

    def _before_hard_sigmoid(self, node: Node) -> Node | None:
        """The tensor ``x`` of ``clip(x + 3, 0, 6)``, with the numbers 3 and 6 or others above 0. None for others."""
        if self._inner_name(node) not in ("clamp", "hardtanh") or len(node.args) != 3 or node.args[1] != 0:
            return None
        shifted: Any
        shifted, _, high = node.args
        if self._inner_name(shifted) != "add" or not isinstance(high, (int, float)) or math.isinf(high):
            return None
        before: Node = shifted.args[0]
        number: Any = shifted.args[1]
        return before if isinstance(number, (int, float)) and number > 0 else None

    def _inner_name(self, node: Any) -> str | None:
        """The name of a function of single elements, or None."""
        is_called = isinstance(node, Node) and node.op == "call_function" and node in self._weight
        return _name_of(node) if is_called else None

    def _written_out(self, node: Node) -> Node | None:
        """The beginning of an activation that the node completes, and inside which a number was added. Or None."""
        before_clip = self._before_hard_sigmoid(node)
        if before_clip is not None:
            return before_clip
        inner = self._inner(node)
        if inner is None:
            return None
        name, (base, is_multiple) = inner
        return base if name in SUMS_WITH_A_NUMBER and not is_multiple else None

    def _step(self, node: Node, coefficients: Coefficients) -> Iterator[tuple[Node, int, torch.Tensor]]:
        operation = self._operation(node)
        base = self._written_out(node)
        if base is not None and len(_listed(self._values[base])) == 1 and coefficients[0] is not None:
            x, y = self._values[base], _listed(self._values[node])[0]
            near = x.abs() < torch.finfo(x.dtype).eps
            yield base, 0, torch.where(near, 0, coefficients[0] * y / torch.where(near, 1, x))
            return
        if node.target is operator.getitem:
            assert coefficients[0] is not None
            yield operation.sources[0], operation.values[-1], coefficients[0]
            return
        for position, coefficient in _rule(operation, self._values[node], coefficients).items():
            yield operation.sources[position], 0, coefficient


def _name_of(node: Node) -> str:
    return str(getattr(getattr(node.target, "overloadpacket", None), "__name__", ""))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_differentiable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())
