"""What every command does alike: output, JSON, errors, exit status.

Exit status: 0 done; 1 a check failed; 2 bad input; 130 interrupted. With `--json`, standard output
holds one JSON object and nothing else; everything for people goes to standard error, without what a
terminal would obey in names that others chose.
"""

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lrqat.checkpoint import manifest
from lrqat.checkpoint.roles import Role
from lrqat.checkpoint.verification import accept_tokenizer, unlisted_files
from lrqat.cli.failures import explanation
from lrqat.cli.parsing import Parser
from lrqat.errors import UserError
from lrqat.foreign_text import shown

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class Output:
    """Where a command prints.

    Args:
        as_json: keep standard output for the JSON object.
    """

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        # No colour or wrapping when piped, so that logs and greps see whole lines.
        stream = sys.stderr if as_json else sys.stdout
        width = None if stream.isatty() else 200
        self.console = Console(file=stream, width=width, highlight=False)

    def say(self, message: str) -> None:
        """Print one line for people."""
        self.console.print(escape(shown(message)), soft_wrap=True)

    def warn(self, message: str) -> None:
        """Print a warning on standard error."""
        Console(stderr=True, highlight=False).print(
            f"[yellow]warning:[/] {escape(shown(message))}", soft_wrap=True
        )

    def next(self, line: str, what: str = "") -> None:
        """Say which command comes next, and what else could."""
        self.say(f"next: {line}" + (f" ({what})" if what else ""))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print a table; every column but the first is right-aligned."""
        table = Table(title=escape(shown(title)), title_justify="left", title_style="bold")
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if i else "left", overflow="fold")
        for row in rows:
            table.add_row(*(escape(shown(str(cell))) for cell in row))
        self.console.print(table)

    def result(self, value: dict[str, Any]) -> None:
        """Print the JSON object, if it was asked for."""
        if self._as_json:
            print(json.dumps(value, allow_nan=False), flush=True)


def parser(description: str, essentials: Sequence[str] = ()) -> Parser:
    """A parser with `--json`; see `lrqat.cli.parsing`."""
    made = Parser(description, essentials)
    add_json_option(made)
    return made


def add_json_option(to: argparse.ArgumentParser) -> None:
    """`--json`; commands with parts of their own have it behind the part's name."""
    to.add_argument(
        "--json", action="store_true", help="print one JSON object, and nothing else, on stdout"
    )


def add_accept_option(to: argparse.ArgumentParser) -> None:
    """`--accept-changed-tokenizer`, of commands that read a checkpoint's tokenizer."""
    to.add_argument(
        "--accept-changed-tokenizer",
        action="store_true",
        help="take over tokenizer files, chat templates and generation settings of the checkpoint "
        "that were changed after training, and record them in its lrqat.json",
    )


def accept_changes(args: argparse.Namespace, checkpoint: str, out: Output) -> None:
    """Do what `--accept-changed-tokenizer` asks for, and say what is left out without it.

    Raises:
        UserError: `checkpoint` is none, or cannot be written.
    """
    folder = Path(checkpoint)
    if args.accept_changed_tokenizer:
        taken = accept_tokenizer(folder)
        out.say(f"recorded in {folder / manifest.FILE_NAME}: {', '.join(taken) or 'no change'}")
    elif (folder / manifest.FILE_NAME).is_file():
        files = manifest.read(folder)["files"]
        ignored = unlisted_files(folder, files, Role.MODEL, Role.TEXT)
        if ignored:
            out.warn(
                f"not read, since {folder / manifest.FILE_NAME} does not list them: "
                f"{', '.join(ignored)} (--accept-changed-tokenizer takes tokenizer files over)"
            )


def keep_measurement(
    path: Path, what: str, found: dict[str, Any], out: Output, home: Path | None = None
) -> None:
    """Keep a measurement for the model card; where that is not possible, no more than say so."""
    if not path.exists():  # an id on the hub
        return
    from lrqat.publication.measured import keep

    try:
        keep(path, what, found, home)
    except UserError as error:
        out.warn(f"not kept for the model card: {error}")


def add_text_options(to: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The text that perplexity is measured on, and how it is cut."""
    to.add_argument("--data", required=required, help="file of plain UTF-8 text")
    to.add_argument("--context", type=int, default=512, help="tokens per window")
    to.add_argument("--windows", type=int, default=None, help="windows at most; default: all")


def run(main: Callable[[Sequence[str] | None], int]) -> NoReturn:
    """Run a command's `main` and exit; a user's mistake becomes one message, not a traceback."""
    _quiet_libraries()
    if sys.stderr is None:  # closed by whoever started us
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        if sys.stdout is None:
            raise BrokenPipeError  # else the first file that is opened would be standard output
        status = _status_of(main)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        _complain(escape(shown(str(error))) or "interrupted")
        status = INTERRUPTED
    except Exception as error:
        message = explanation(error)
        if message is None:
            raise
        if sys.stdout is not None:
            _give_up_output()
        _complain(f"[bold red]error:[/] {escape(shown(message))}")
        status = BAD_INPUT
    sys.exit(status)


def _status_of(main: Callable[[Sequence[str] | None], int]) -> int:
    try:
        return main(None)
    except SystemExit as done:  # argparse, which has said what is wrong, or the help
        return done.code if isinstance(done.code, int) else OK


def _complain(message: str) -> None:
    with suppress(OSError, ValueError):  # nobody listens
        Console(stderr=True, highlight=False).print(message, soft_wrap=True)


def _give_up_output() -> None:
    """Drop what standard output does not take, which Python would try once more, and complain."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _quiet_libraries() -> None:
    """Leave the screen to our own progress; libraries may still report errors."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error") == "error":
        imported = sys.modules.get("transformers")
        if imported is not None:  # by tools/train.py, and it asks only then
            imported.logging.set_verbosity_error()
    # peft imports it where it is installed, and it misses a package that nobody asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.formatwarning = lambda message, *where, **more: f"warning: {shown(str(message))}\n"
    warnings.filterwarnings("ignore", module=r"(torch|transformers|datasets|onnxscript)\b")
