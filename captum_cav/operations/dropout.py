"""Dropout. In evaluation mode it is the identity. In training mode it is refused."""

from __future__ import annotations

from captum_cav.operations import guards
from captum_cav.operations.structure import KEPT, linear
from captum_cav.operations.table import TABLE
from captum_cav.propagation.kinds import Derivative
from captum_cav.propagation.operation import OperationSpec
from captum_cav.propagation.traits import Trait


def _dropout(keeps: Trait, hands_on: bool = False) -> OperationSpec:
    return OperationSpec(
        rule=linear,
        is_as_is=True,
        derivative=Derivative.ALWAYS,
        keeps=keeps,
        guard=guards.dropout,
        hands_on=hands_on,
    )


TABLE.register("dropout dropout1d dropout2d dropout3d", _dropout(KEPT, hands_on=True))
TABLE.register("feature_dropout native_dropout", _dropout(KEPT))
TABLE.register("alpha_dropout feature_alpha_dropout", _dropout(Trait.GATE))
