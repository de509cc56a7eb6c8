"""The subcommands of ``captum-cav``, one module for each.

Each module has a function ``add_parser(commands)``. The function adds the options of the subcommand and sets ``run`` to
the function that runs the subcommand with its options.
"""

from captum_cav.commands import compare, explain, report, reproduce

COMMANDS = (explain, reproduce, report, compare)
