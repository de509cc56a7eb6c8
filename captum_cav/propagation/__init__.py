"""Contribution propagation: ordinary autograd over a forward pass whose every operation is a surrogate."""
