"""Compare attribution methods on the same model, inputs and layers: maps, measures, cost and a figure."""

from captum_cav.comparison.language import language_model_method
from captum_cav.comparison.methods import NAMES, Method
from captum_cav.comparison.report import Comparison, Row
from captum_cav.comparison.run import METRICS, compare

__all__ = ["METRICS", "NAMES", "Comparison", "Method", "Row", "compare", "language_model_method"]
