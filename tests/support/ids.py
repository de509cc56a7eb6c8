"""Names of test cases."""

from __future__ import annotations

import re
from typing import Any


def without_address(value: Any) -> str:
    """The text of a value without addresses in memory, so that a case has the same name in every run."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
