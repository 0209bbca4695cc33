"""The command line: commands parse, call one library function, and print.

====================  ==============================================================================
`app`                 the commands put together; `main`, and how errors become exit codes
`options`             options that several commands share
`console`             what goes to standard output, what to standard error
`progress`            a bar on a terminal, plain lines elsewhere
`paint`               the painting loop under SIGINT and SIGTERM
`stylize`, `evaluate` one module for each command, or group of commands …
`export`, `presets`
`weights`, `cache`
`doctor`, `demo`
====================  ==============================================================================

Commands import what they need when they run, so that ``impasto --help`` stays quick.
"""

from __future__ import annotations

from impasto.cli.app import main

__all__ = ["main"]
