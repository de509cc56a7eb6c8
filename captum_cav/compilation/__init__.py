"""Attributions recorded once and replayed: :func:`compile`."""

from captum_cav.compilation.compiled import compile

__all__ = ["compile"]
