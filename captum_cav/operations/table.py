"""The one table of operations, which the modules of this package fill."""

from __future__ import annotations

from captum_cav.propagation.table import OperationTable

#: What each torch function does by default.
TABLE = OperationTable()
