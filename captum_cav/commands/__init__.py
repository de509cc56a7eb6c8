"""The subcommands of ``captum-cav``, one module each.

A command's module has ``add_parser(commands)``, which adds its options and, by ``set_defaults(run=...)``, names the
function that takes them.
"""

from captum_cav.commands import compare, explain, report, reproduce

COMMANDS = (explain, reproduce, report, compare)
