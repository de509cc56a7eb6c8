"""Contribution propagation: ordinary autograd over a forward pass in which a surrogate replaces each operation.

A surrogate has the value of its operation, but its gradient carries contributions. The engine gets a table of
operations. It knows no operation by name, and no rule that a user chooses.
"""
