"""The program `lrqat`: one command a file of this folder, imported when it is called."""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from lrqat import __version__
from lrqat.cli import command
from lrqat.errors import UserError, did_you_mean

# Group -> command -> what it does. A command is the module of its name in `lrqat.cli`.
GROUPS = {
    "Train": {
        "plan": "choose the grid of every weight for a file of a given size",
        "train": "train a model on a quantization grid, and write the fused checkpoint",
        "compare": "train on several grids by several methods, and tabulate the results",
    },
    "Export": {
        "import": "take over a model that lies on a grid already, exactly",
        "export": "write GGUF (llama.cpp) or ONNX (ONNX Runtime), bit for bit",
        "inspect": "show what a file or folder holds, and whether it is exact",
        "push": "publish a checkpoint and its exports on the Hugging Face hub",
    },
    "Prove": {
        "parity": "prove exported files against their checkpoint: bytes, graph, runtime",
        "evaluate": "measure the perplexity of a model in its own runtime",
        "report": "write one HTML file about runs and files, to look at and to hand on",
    },
    "Help": {
        "doctor": "show what this machine has, and where a model runs, and how fast",
    },
    "Try": {
        "demo": "run the whole path on SmolLM2-135M, or --offline on a tiny model",
    },
}
COMMANDS = {name: summary for group in GROUPS.values() for name, summary in group.items()}
DESCRIPTION = (
    "Train a language model on the grid that its runtime computes with, and export\n"
    "exactly the integers and scales that were trained."
)
_COMPLETION = "--print-completion"
_OPTIONS = {
    "-h, --help": "show this message; after a command, its options",
    "--version": "show the version",
    f"{_COMPLETION} SHELL": "print a completion script for bash, zsh, fish ...",
}
_EXAMPLES = (
    "lrqat train --model MODEL --data text.txt --output runs/a",
    "lrqat export runs/a --format gguf",
    "lrqat parity runs/a runs/a/model-q4_0.gguf --data held-out.txt",
)


def usage() -> str:
    """What `lrqat --help` prints."""
    sections = ["usage: lrqat COMMAND [options]", DESCRIPTION]
    for title, entries in (*GROUPS.items(), ("Options", _OPTIONS)):
        width = 26 if entries is _OPTIONS else 10
        lines = (f"  {name:<{width}}{summary}" for name, summary in entries.items())
        sections.append("\n".join((f"{title}:", *lines)))
    sections.append("\n".join(("Examples:", *(f"  {line}" for line in _EXAMPLES))))
    return "\n\n".join(sections)


def dispatch(argv: Sequence[str]) -> int:
    """Run the command that `argv` names; returns its exit status. Raises UserError."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return command.OK if argv else command.BAD_INPUT
    name, *rest = argv
    if name == "--version":
        print(f"lrqat {__version__}")
        return command.OK
    if name == _COMPLETION:
        from lrqat.cli.completion import script

        print(script(rest[0] if rest else "", DESCRIPTION, COMMANDS))
        return command.OK
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        raise UserError(f"unknown command {name!r}: {hint}commands are {', '.join(COMMANDS)}")
    sys.argv[0] = f"lrqat {name}"  # how argparse calls it in usage and errors
    status: int = importlib.import_module(f"lrqat.cli.{name}").main(rest)
    return status


def main() -> NoReturn:
    """The entry point of the package."""
    command.run(lambda argv: dispatch(sys.argv[1:] if argv is None else argv))
