"""How operations pass contributions on: the paper's rules, and the defaults for what the paper leaves open.

A rule takes an :class:`Operation` and returns the operation's value as a surrogate (see :class:`Rule`). The defaults go
by the plain name of a torch function; ``rules={torch.some_function: rule}`` of an attribution goes before them.
"""

from __future__ import annotations

from captum_cav.propagation.operation import Operation, Rule
from captum_cav.rules import activation, attention, normalization, pooling, recurrent
from captum_cav.rules import linear as _linear
from captum_cav.rules import product as _product
from captum_cav.rules.activation import pass_through
from captum_cav.rules.linear import additive, linear
from captum_cav.rules.pooling import winner_takes_all
from captum_cav.rules.product import product
from captum_cav.rules.training import GUARDS as GUARDS

__all__ = ["Operation", "Rule", "additive", "linear", "pass_through", "product", "winner_takes_all"]

#: The rule of each torch function, by its plain name.
DEFAULTS: dict[str, Rule] = {
    **_linear.RULES,
    **_product.RULES,
    **activation.RULES,
    **pooling.RULES,
    **normalization.RULES,
    **attention.RULES,
    **recurrent.RULES,
}
#: Functions whose output is sigmoid- or softmax-like: it weighs what it is multiplied with.
MAKING_WEIGHTS = activation.MAKING_WEIGHTS
#: Functions whose output is a weight if every carrier they take is one.
KEEPING_WEIGHTS = (
    _linear.KEEPING_WEIGHTS | _product.KEEPING_WEIGHTS | activation.KEEPING_WEIGHTS | pooling.KEEPING_WEIGHTS
)
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
