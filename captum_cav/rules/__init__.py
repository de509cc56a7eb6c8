"""How operations pass contributions on: the paper's rules, the defaults for what it leaves open, and all others.

A rule takes an :class:`Operation` and returns the operation's value as a surrogate (see :class:`Rule`). The defaults go
by the plain name of a torch function; what an attribution is given as ``rules`` goes before them.
"""

from __future__ import annotations

from captum_cav.propagation.marks import NONNEGATIVE, RAW, WEIGHT
from captum_cav.propagation.operation import Operation, Surrogate
from captum_cav.rules import (
    activation,
    attention,
    exported,
    normalization,
    pooling,
    recurrent,
    sampling,
    tangent,
)
from captum_cav.rules import linear as _linear
from captum_cav.rules import product as _product
from captum_cav.rules.activation import pass_through
from captum_cav.rules.addition import AdditionRule
from captum_cav.rules.affine import AffineRule, Share, Summands, inverse_of
from captum_cav.rules.attention import AttentionRule
from captum_cav.rules.elementwise import GradientRule, MeanSlopeRule, PassThroughRule, StopRule
from captum_cav.rules.first_layer import AtInput, FlatRule, WSquareRule, ZBoxRule
from captum_cav.rules.linear import additive, linear
from captum_cav.rules.lrp import AlphaBetaRule, ContributionRule, EpsilonRule, GammaRule, ZPlusRule
from captum_cav.rules.normalization import NormRule
from captum_cav.rules.pooling import ProportionalPoolingRule, UniformPoolingRule, WinnerTakeAllRule, winner_takes_all
from captum_cav.rules.product import ProductRule, product
from captum_cav.rules.rule import FunctionRule, Rule, rule
from captum_cav.rules.training import GUARDS as GUARDS

__all__ = [
    "AdditionRule",
    "AffineRule",
    "AlphaBetaRule",
    "AtInput",
    "AttentionRule",
    "ContributionRule",
    "EpsilonRule",
    "FlatRule",
    "FunctionRule",
    "GammaRule",
    "GradientRule",
    "MeanSlopeRule",
    "NormRule",
    "Operation",
    "PassThroughRule",
    "ProductRule",
    "ProportionalPoolingRule",
    "Rule",
    "Share",
    "StopRule",
    "Summands",
    "UniformPoolingRule",
    "WSquareRule",
    "WinnerTakeAllRule",
    "ZBoxRule",
    "ZPlusRule",
    "additive",
    "inverse_of",
    "linear",
    "pass_through",
    "product",
    "rule",
    "winner_takes_all",
]

#: The rule of each torch function, by its plain name.
DEFAULTS: dict[str, Surrogate] = {
    **_linear.RULES,
    **_product.RULES,
    **activation.RULES,
    **pooling.RULES,
    **normalization.RULES,
    **attention.RULES,
    **recurrent.RULES,
    **sampling.RULES,
    **tangent.RULES,
    **exported.RULES,
}


_MAKING_WEIGHTS = activation.MAKING_WEIGHTS | _product.MAKING_WEIGHTS

_DERIVATIVES = (
    _linear.linear,
    _linear.additive,
    _linear.averaging,
    pooling.winner_takes_all,
    pooling.larger_of_two,
    activation.relu,
    activation.through_zero,
    activation.absolute,
    normalization.batch_norm,
    tangent.tangent,
)

#: Default rules that give an operation's own value where one tensor depends on the inputs, none left word for another
#: operation, and nobody asks for the shares of constants.
PLAIN: frozenset[Surrogate] = frozenset(
    [
        *(_linear.linear, _linear.additive, _linear.averaging, _linear.affine),
        *(_product.product, pooling.winner_takes_all, activation.relu),
    ]
)


def is_derivative(rule: Surrogate, operation: Operation) -> bool:
    """Whether a rule passes on an operation's own gradient, so that contributions are activation x gradient."""
    if operation.held:
        return False
    if rule in (_linear.affine, _product.product, _product.division):
        return len(operation.sources) == 1
    if rule is _product.homogeneous:
        return _product.DEGREES[operation.name] == 1
    return isinstance(rule, GradientRule) or rule in _DERIVATIVES


#: Traits that the output of a function has whatever it takes.
MAKING: dict[str, int] = {
    name: WEIGHT * (name in _MAKING_WEIGHTS) | NONNEGATIVE * (name in activation.MAKING_NONNEGATIVE)
    for name in _MAKING_WEIGHTS | activation.MAKING_NONNEGATIVE
}
_KEEPING_WEIGHTS = frozenset().union(
    *(family.KEEPING_WEIGHTS for family in (_linear, _product, activation, pooling, normalization))
)
_KEEPING_NONNEGATIVE = _linear.KEEPING_NONNEGATIVE | pooling.KEEPING_NONNEGATIVE
_WITH_WEIGHTS = AffineRule.operations or frozenset()
#: Traits that the output of a function has if all that depends on the inputs has them.
KEEPING: dict[str, int] = {
    name: WEIGHT * (name in _KEEPING_WEIGHTS)
    | NONNEGATIVE * (name in _KEEPING_NONNEGATIVE)
    | RAW * (name not in _WITH_WEIGHTS or name == "batch_norm")
    for name in _KEEPING_WEIGHTS | _KEEPING_NONNEGATIVE | _WITH_WEIGHTS
}
#: Functions that keep values from being negative only if no constant takes part.
NONNEGATIVE_TOGETHER = _linear.NONNEGATIVE_TOGETHER
#: Functions that are the identity at rest: what the rule before them left is for the rule behind them.
HANDING_ON = _linear.IDENTITIES
SHAPED_LIKE = _linear.SHAPED_LIKE
#: What is asked of a tensor without computing on it.
QUERIES = frozenset(
    """
    shape device dtype ndim layout requires_grad grad grad_fn is_leaf is_cuda is_cpu is_meta is_mps is_xpu is_sparse
    is_quantized is_nested output_nr names itemsize nbytes _version _base size dim numel nelement ndimension stride
    storage_offset is_contiguous is_floating_point is_complex is_signed is_inference is_pinned is_set_to is_shared
    is_same_size element_size data_ptr untyped_storage storage get_device type_dtype __len__ __hash__ __repr__
    __format__ __dir__ _is_view is_tensor is_nonzero dense_dim sparse_dim has_names is_distributed is_conj is_neg
    can_cast result_type promote_types
    """.split()
)
