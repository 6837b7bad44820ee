"""The program `lrqat`: one command a file of this folder, imported when it is called.

lrqat train --model MODEL --data text.txt --output runs/a
lrqat export runs/a --format gguf
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from lrqat import __version__
from lrqat.cli import command
from lrqat.errors import UserError, did_you_mean

# Group -> command -> what it does. A command is the module of its name in `lrqat.cli`.
GROUPS = {
    "make": {
        "train": "train a model on a quantization grid, and write the fused checkpoint",
        "compare": "train several grids by several methods, and tabulate what each gives",
    },
    "ship": {
        "export": "write GGUF (llama.cpp) or ONNX (ONNX Runtime), bit for bit",
        "inspect": "what a file or folder holds, and whether it is exact",
    },
    "prove": {
        "parity": "prove exported files against their checkpoint: bytes, graph, runtime",
        "evaluate": "perplexity of a model in its own runtime",
    },
    "see": {
        "demo": "the whole path, from a model that it makes itself to the proof",
    },
}
COMMANDS = {name: summary for group in GROUPS.values() for name, summary in group.items()}


def usage() -> str:
    """What `lrqat --help` prints."""
    lines = ["usage: lrqat COMMAND [options]", ""]
    lines += ["Low-rank quantization-aware training, exported bit for bit to GGUF and ONNX.", ""]
    for group, commands in GROUPS.items():
        lines.append(f"{group}:")
        lines += [f"  {name:<10} {summary}" for name, summary in commands.items()]
        lines.append("")
    lines.append("`lrqat COMMAND --help` lists the options of a command; `lrqat --version`.")
    return "\n".join(lines)


def dispatch(argv: Sequence[str]) -> int:
    """Run the command that `argv` names; returns its exit status. Raises UserError."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return command.OK if argv else command.BAD_INPUT
    if argv[0] == "--version":
        print(f"lrqat {__version__}")
        return command.OK
    name, *rest = argv
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        raise UserError(f"unknown command {name!r}: {hint}commands are {', '.join(COMMANDS)}")
    sys.argv[0] = f"lrqat {name}"  # how argparse calls it in usage and errors
    status: int = importlib.import_module(f"lrqat.cli.{name}").main(rest)
    return status


def main() -> NoReturn:
    """The entry point of the package."""
    command.run(lambda argv: dispatch(sys.argv[1:] if argv is None else argv))
