"""Measures of maps, and Captum's own metrics for layers."""

from __future__ import annotations

from captum_cav.metrics.captum_metrics import infidelity, sensitivity_max
from captum_cav.metrics.measure import Direction, Measure, measure

__all__ = ["Direction", "Measure", "infidelity", "measure", "sensitivity_max"]
