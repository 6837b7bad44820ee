"""Driving llama-quantize, llama.cpp's own program, which derives scales from floating weights.

The prebuilt llama.cpp that runs our files does not contain it, so whoever compares has to say where
it is.
"""

import subprocess
from pathlib import Path

from lrqat.errors import OutputError, UserError


def quantize(tool: Path, source: Path, target: Path, kind: str, table: str) -> None:
    """Run llama-quantize.

    Args:
        tool: its path.
        source: a float32 GGUF file.
        target: what it writes.
        kind: type of the matrices.
        table: type of the embedding and, if there is one, of the head.

    Raises:
        UserError: it fails, or there is none.
    """
    tables = [f"--token-embedding-type={table}", f"--output-tensor-type={table}"]
    options = [word for flag in tables for word in flag.split("=")]
    command = [str(tool), "--pure", *options, str(source), str(target), kind]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise OutputError(f"cannot run {tool}: {error.strerror}; check the path") from None
    if done.returncode or not target.is_file():
        said = (done.stdout + done.stderr)[-500:]
        raise UserError(f"{tool.name} failed ({done.returncode}): {said}")
