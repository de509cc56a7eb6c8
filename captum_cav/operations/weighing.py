"""Gates that weigh constants: which products of a gate and constants are constants themselves.

A gate weighs whatever it multiplies. The gate is a constant, also if the other factor is a constant. Then the product
is a constant, too, and its whole value is a share of constants.

The weights of a layer are the exception. All samples share them, and the gate is then an activation, which carries
contributions. The shapes tell such weights apart:

- In a matrix product a constant of one or two dimensions is a weight, and a constant with a batch is not.
- In an elementwise product a number, a tensor of one element and a constant that is broadcast are weights. So are
  booleans and integers, because a mask selects.
- The factors of linear layers, convolutions and batch norms are always weights.

No answer here depends on the number of samples, except where the shapes are ambiguous: see the table in
``docs/gates.md``.
"""

from __future__ import annotations

import torch

from captum_cav.propagation.operation import Operation
from captum_cav.tensors import is_number, tensors_in


def weighed_by_element(operation: Operation) -> bool:
    """Whether a gate weighs a constant in an elementwise product: a constant that is not broadcast."""
    constants = _weighed_by_gate(operation)
    if len(constants) != 1:
        return False
    (constant,), (gate,) = constants, operation.sources
    if not is_number(constant) or constant.dim() < gate.dim() or (constant.dim() < 2 and constant.numel() == 1):
        return False
    shape = torch.broadcast_shapes(constant.shape, gate.shape)  # type: ignore[no-untyped-call]
    return bool(constant.shape == shape)


def weighed_in_batches(operation: Operation) -> bool:
    """Whether a gate weighs constants in a matrix product: a constant has a batch, so three or more dimensions."""
    return any(constant.dim() > 2 for constant in _weighed_by_gate(operation))


def weighed_by_batch_index(operation: Operation) -> bool:
    """Whether a gate weighs constants in an einsum.

    If the equation sums over an index of both, it is a matrix product, and there must be a common index of the gate,
    the constants and the output. Otherwise it is an elementwise product, and the constants must have all indices of the
    output.
    """
    constants = _weighed_by_gate(operation)
    if not constants:
        return False
    equation, *operands = operation.args
    of_output, of_operands = _indices(equation, tensors_in(operands))
    (of_gate,) = (indices for tensor, indices in of_operands if tensor is operation.sources[0])
    of_constants = set().union(*(indices for tensor, indices in of_operands if tensor is not operation.sources[0]))
    if of_gate & of_constants - of_output:
        return bool(of_gate & of_constants & of_output)
    return of_constants >= of_output


def weighed_in_bilinear(operation: Operation) -> bool:
    """Whether one input of a bilinear layer is a gate, and the other input is a constant with a batch."""
    if not _weighed_by_gate(operation):
        return False
    inputs = operation.argument(0, "input1"), operation.argument(1, "input2")
    return any(one is operation.sources[0] for one in inputs) and all(one.dim() > 1 for one in inputs)


def weighed_values(operation: Operation) -> bool:
    """Whether attention weighs values that are constants. Attention weights are never an activation of a layer."""
    return bool(operation.sources) and not operation.depends_on_inputs(operation.argument(2, "value"))


def _weighed_by_gate(operation: Operation) -> list[torch.Tensor]:
    """The constants in a product, if the only tensor that depends on the inputs is a gate. Otherwise none.

    A reciprocal is a divisor. It weighs nothing.
    """
    if len(operation.sources) != 1:
        return []
    (gate,) = operation.sources
    if not operation.is_gate(gate) or operation.is_reciprocal(gate):
        return []
    return [tensor for tensor in tensors_in([operation.args, operation.kwargs]) if tensor is not gate]


def _indices(equation: str, operands: list[torch.Tensor]) -> tuple[set[str], list[tuple[torch.Tensor, set[str]]]]:
    """The indices in the equation of an einsum: of the output, and of each operand.

    The dimensions of an ellipsis are numbered from the right: ``.1``, ``.2`` and so on.
    """
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    hidden = [tensor.dim() - len(term.replace("...", "")) for term, tensor in zip(terms, operands, strict=True)]
    if not arrow:
        once = {letter for letter in inputs if letter.isalpha() and inputs.count(letter) == 1}
        output = "..." + "".join(once)
    found = [
        (tensor, _letters(term) | _dots(count)) for term, tensor, count in zip(terms, operands, hidden, strict=True)
    ]
    return _letters(output) | (_dots(max(hidden)) if "..." in output else set()), found


def _letters(term: str) -> set[str]:
    return {letter for letter in term if letter.isalpha()}


def _dots(count: int) -> set[str]:
    return {f".{number}" for number in range(1, count + 1)}
