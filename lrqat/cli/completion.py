"""Completion scripts for shells, written by shtab from the parsers of all commands.

A script is static: a shell that completes `lrqat tr<TAB>` starts no Python and imports no torch.
"""

import argparse
import importlib
from collections.abc import Mapping

from lrqat.errors import UserError, did_you_mean
from lrqat.optional_libraries import load


def script(shell: str, description: str, commands: Mapping[str, str]) -> str:
    """The completion script of the program `lrqat`.

    Args:
        shell: bash, zsh, fish, tcsh or powershell.
        description: of the program.
        commands: command -> what it does; each is a module of `lrqat.cli`.

    Raises:
        UserError: another shell, or shtab is not installed.
    """
    shtab = load("shtab", "lrqat[completion]", needed_by="a completion script")
    known = shtab.SUPPORTED_SHELLS
    if shell not in known:
        hint = did_you_mean(shell, known)
        raise UserError(f"no completion for the shell {shell!r}: {hint}choose {', '.join(known)}")
    program = argparse.ArgumentParser("lrqat", description=description)
    parsers = program.add_subparsers()
    for name, summary in commands.items():
        own = importlib.import_module(f"lrqat.cli.{name}").build_parser()
        # Most values are paths, and a shell offers files wherever it knows nothing better.
        for action in own._actions:
            if action.nargs != 0:
                action.complete = shtab.FILE
        parsers.add_parser(name, help=summary, parents=[own], add_help=False)
    return str(shtab.complete(program, shell))
