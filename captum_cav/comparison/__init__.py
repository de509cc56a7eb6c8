"""Attribution methods side by side: the same model, inputs and layers, with maps, measures, cost and a figure."""

from captum_cav.comparison.methods import NAMES, Method
from captum_cav.comparison.report import Comparison, Row
from captum_cav.comparison.run import METRICS, compare

__all__ = ["METRICS", "NAMES", "Comparison", "Method", "Row", "compare"]
