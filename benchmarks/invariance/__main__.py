"""Whether a map depends on how a function is written: the same function must get the same map.

    python -m benchmarks.invariance [--only NAME ...] [--preset NAME ...] [--table FILE] [--threads 1]

Implementation invariance is an axiom of attribution methods (Sundararajan et al. 2017). Every pair of the table
(``table.py``) is a function and a rewrite that computes the same numbers, such as a fused kernel and the same by hand.
Each of them stands between two linear layers. Under every preset, in float64, the contributions of the inputs and of
the first layer must be equal, and so must the deltas, which measure the shares of constants. A difference above 1e-9 of
the largest value counts. So does it if one of the two is refused and the other one is not.

A line is printed for each pair: whether its maps are equal, the worst deviation, its preset and its place. ``--table``
writes what stands in ``docs/invariance.md``. The exit status is 1 if a pair deviates that is not called undecidable.

Source: Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks", section 2.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.invariance.measure import Deviation, deviations
from benchmarks.invariance.pair import RULES, Pair
from benchmarks.invariance.report import shown, written
from benchmarks.invariance.table import pairs


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.invariance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", default=[""], help="pairs that have one of these words in group or name")
    parser.add_argument("--preset", nargs="+", default=list(RULES), choices=list(RULES), metavar="NAME")
    parser.add_argument("--table", type=Path, help="write the table to this file")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found: list[tuple[Pair, list[Deviation]]] = []
    for pair in pairs():
        if any(word in f"{pair.group}: {pair.name}" for word in options.only):
            found.append((pair, deviations(pair, options.preset)))
            print(shown(*found[-1]), flush=True)
    deviating = [pair for pair, measured in found if not all(one.is_none for one in measured)]
    failed = [pair for pair in deviating if not pair.undecidable]
    print(f"{len(found)} pairs, {len(failed)} deviate, {len(deviating) - len(failed)} cannot be told apart")
    if options.table:
        options.table.write_text(written(found))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
