"""Attributions recorded once and replayed: :func:`compile`; :func:`save` puts a recording into a file."""

from captum_cav.compilation.compiled import compile  # noqa: A004 - as torch.compile
from captum_cav.compilation.storage import save

__all__ = ["compile", "save"]
