"""Rules that a user can choose: how operations pass contributions on.

A rule takes an :class:`Operation` and returns the operation's value as a surrogate (see :class:`Rule`). The option
``rules`` of an attribution says which operations use which rule. All other operations use their default rules, which
are in the table of :mod:`captum_cav.operations`.
"""

from __future__ import annotations

from captum_cav.operations.elementwise import pass_through
from captum_cav.operations.products import product
from captum_cav.operations.selection import winner_takes_all
from captum_cav.operations.structure import linear
from captum_cav.operations.sums import additive
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.rule import FunctionRule, Rule
from captum_cav.rules.activations import GradientRule, MeanSlopeRule, PassThroughRule, StopRule
from captum_cav.rules.affine import AffineRule, Share, Summands, inverse_of
from captum_cav.rules.attention import AttentionRule
from captum_cav.rules.decorator import rule
from captum_cav.rules.first_layer import FlatRule, WSquareRule, ZBoxRule
from captum_cav.rules.lrp import (
    AbsoluteEpsilonRule,
    AlphaBetaRule,
    ContributionRule,
    EpsilonRule,
    GammaRule,
    ZPlusRule,
)
from captum_cav.rules.norms import NormRule
from captum_cav.rules.places import AtFineMaps, AtInput
from captum_cav.rules.pooling import ProportionalPoolingRule, UniformPoolingRule, WinnerTakeAllRule
from captum_cav.rules.products import ProductRule
from captum_cav.rules.sums import AdditionRule

__all__ = [
    "AbsoluteEpsilonRule",
    "AdditionRule",
    "AffineRule",
    "AlphaBetaRule",
    "AtFineMaps",
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
