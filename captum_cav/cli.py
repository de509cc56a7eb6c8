"""The command line ``captum-cav``. Its subcommands are in :mod:`captum_cav.commands`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from captum_cav.commands import COMMANDS
from captum_cav.errors import CAVError
from captum_cav.memory import keep_freed_memory
from captum_cav.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the arguments after the name of the program; ``sys.argv[1:]`` if None.

    Returns:
        The exit status: 0 for success; 1 if a part of the inputs could not be used; 2 for an error that the user can
        correct; 130 after Ctrl-C. One line on standard error says what happened.
    """
    options = _parser().parse_args(arguments)
    if arguments is None:  # The process is the command's own.
        keep_freed_memory()
    try:
        # A subcommand returns its exit status, or None for success.
        status: int | None = options.run(options)
    except (CAVError, OSError) as error:
        # An OSError is a full disk, a name that is too long, a folder that vanished.
        print(f"captum-cav: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # The line begins below "^C" and below an unfinished progress bar.
        print("\ncaptum-cav: interrupted", file=sys.stderr)
        return 130
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="captum-cav",
        description="Contribution Analysis Visualization: which parts of a picture gave a network its score?",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
