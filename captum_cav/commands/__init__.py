"""The subcommands of ``captum-cav``, one module for each.

Each module has a function ``add_parser(commands)``. The function adds the options of the subcommand and sets ``run`` to
the function that checks the options and runs the subcommand with them. That function returns the exit status, or None
for success. What several subcommands share is in :mod:`captum_cav.commands.options` (options and their checks) and in
:mod:`captum_cav.commands.outputs` (files that are written, JSON).

These modules load neither torch nor Captum, so that help and messages about wrong options appear at once. What the
subcommands do is in :mod:`captum_cav.commands.running`, which loads when the options were checked.
"""

from captum_cav.commands import compare, dataset, explain, report, reproduce, summary, text

COMMANDS = (
    explain,
    reproduce,
    report,
    compare,
    dataset,
    summary,
    text,
)
