"""Parsers of the commands: help that begins with what matters; mistakes that name what was meant.

No option may be shortened: what `--gr` means today would mean nothing once there is a `--group`.
"""

import argparse
import copy
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from lrqat.errors import UserError, did_you_mean

_SHORT, _ALL = ("-h", "--help"), "--help-all"
_TITLE = 14  # columns of a group's name
_CHOICE = re.compile(r"argument (.+): invalid choice: (.+) \(choose from (.+)\)")


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the paragraphs of a description, and shows a default where there is a value to show."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(part, width, indent) for part in text.split("\n\n"))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default is None or action.default is False or action.default == []
        return action.help if nothing else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are a `UserError`.

    Args:
        description: for the help.
        essentials: destinations of the options that matter first. With them `--help` explains
            these alone and lists the names of the others, which `--help-all` explains; without
            them `--help` explains all.
    """

    def __init__(self, description: str, essentials: Sequence[str] = ()) -> None:
        super().__init__(
            description=description,
            formatter_class=Formatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.appendix = ""  # lines below the help, as they are
        self._essentials = tuple(essentials)
        self.add_argument(*_SHORT, action=_Help, help="show the help, and stop")
        if essentials:
            self.add_argument(_ALL, action=_Help, help="explain all options, and stop")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse. Raises UserError: an option is unknown or missing, or has a wrong value."""
        given = sys.argv[1:] if args is None else list(args)
        self._refuse_unknown(given)
        return super().parse_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below its usage."""
        found = _CHOICE.fullmatch(message)
        known = found[3].replace("'", "").split(", ") if found else []
        hint = did_you_mean(found[2].strip("'"), known) if found else ""
        raise UserError(f"{message}; {hint}{self.prog} --help shows the options")

    def format_usage(self) -> str:
        """The names first, then what must be given."""
        return f"usage: {self._usage()}\n"

    def format_help(self) -> str:
        """The help of all options, in their groups."""
        self.usage = self._usage().replace("%", "%%")
        below = f"\n{self.appendix}" if self.appendix else ""
        return super().format_help() + below

    def format_short_help(self) -> str:
        """The help of the essential options, and the names of the others."""
        formatter = self._get_formatter()
        formatter.add_usage(self._usage().replace("%", "%%"), self._actions, [])
        formatter.add_text((self.description or "").split("\n\n")[0])
        names = [a for a in self._actions if not a.option_strings]
        first = [a for name in self._essentials for a in self._actions if a.dest == name]
        formatter.start_section("first of all")
        formatter.add_arguments([_in_short(action) for action in (*names, *first)])
        formatter.end_section()
        listed = [_wrapped(title, flags) for title, flags in self._others(first)]
        more = f"{self.prog} {_ALL} explains them."
        return "\n".join((formatter.format_help(), "more options:", *listed, "", more, ""))

    def _others(self, shown: Sequence[argparse.Action]) -> list[tuple[str, list[str]]]:
        found = [
            (
                "general" if group is self._optionals else str(group.title),
                [
                    a.option_strings[-1] if a.option_strings[0] in _SHORT else a.option_strings[0]
                    for a in group._group_actions
                    if a.option_strings and a not in shown
                ],
            )
            for group in self._action_groups
        ]
        found.sort(key=lambda entry: entry[0] == "general")
        return [(title, flags) for title, flags in found if flags]

    def _usage(self) -> str:
        names = " ".join(_placeholder(a) for a in self._actions if not a.option_strings)
        needed = " ".join(
            f"{a.option_strings[0]} {a.metavar or a.dest.upper()}"
            for a in self._actions
            if a.option_strings and a.required
        )
        return " ".join(part for part in (self.prog, names, needed, "[options]") if part)

    def _refuse_unknown(self, given: Sequence[str]) -> None:
        """Say so before argparse complains of what is missing because its name is misspelt."""
        known = self._option_string_actions
        for word in given:
            if word == "--":
                return
            name = word.partition("=")[0]
            if not name.startswith("--") or name in known or " " in name:
                continue
            flags = [flag for flag in known if flag.startswith("--")]
            begun = [flag for flag in flags if flag.startswith(name)]
            meant = f"did you mean {' or '.join(begun[:3])}? "
            hint = meant if begun else did_you_mean(name, flags)
            raise UserError(f"unknown option {name}: {hint}{self.prog} --help lists them")


class _Help(argparse.Action):
    """Print a help, and stop."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, 0, default=argparse.SUPPRESS, help=help)

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        """What argparse calls."""
        short = parser._essentials and option_string != _ALL
        print(parser.format_short_help() if short else parser.format_help(), end="")
        parser.exit()


def _in_short(action: argparse.Action) -> argparse.Action:
    """The same with the first part of its help, and the default."""
    short = copy.copy(action)
    said, _, default = (action.help or "").partition(" (default: ")
    short.help = said.split("; ")[0] + (f" (default: {default}" if default else "")
    return short


def _wrapped(title: str, flags: Sequence[str]) -> str:
    width = shutil.get_terminal_size().columns - 2
    begin = f"  {title:<{_TITLE}}"
    return textwrap.fill(
        " ".join(flags),
        max(width, 2 * _TITLE),
        initial_indent=begin,
        subsequent_indent=" " * len(begin),
        break_on_hyphens=False,
    )


def _placeholder(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper())
    several = {"?": f"[{name}]", "+": f"{name} ...", "*": f"[{name} ...]"}
    return several.get(str(action.nargs), name)
