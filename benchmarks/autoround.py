"""A GGUF file of AutoRound's, made by its own command.

It runs in an environment of its own, since it asks for other versions of what we use:

    python -m venv autoround && autoround/bin/pip install auto-round==0.16.1 sentencepiece

Its defaults, but for 128 sequences of 256 tokens (2,048 by default, which a CPU has no time for),
and `--enable_alg_ext`, which its documentation recommends.
"""

import json
import subprocess
from pathlib import Path

# What it calls the type of a grid; its K-quant recipes are all of one type but for the head.
TYPES = {"q4_0": "q4_0", "q4_k": "q4_k_s", "q3_k": "q3_k_s", "q2_k": "q2_k_s"}
_SEQUENCES, _TOKENS = 128, 256
_CHARACTERS = 8 * _TOKENS  # of a piece of text; it drops those with too few tokens


def autoround(python: Path, model: str, text: Path, grid: str, folder: Path) -> Path:
    """Make the file; one that is there is not made again.

    Args:
        python: the interpreter that has auto-round.
        model: folder of the model.
        text: that it is calibrated on.
        grid: one of `TYPES`.
        folder: where its files go.
    """
    if not (found := sorted(folder.rglob("*.gguf"))):
        folder.mkdir(parents=True, exist_ok=True)
        pieces = folder / "text.json"
        pieces.write_text(json.dumps(_pieces(text.read_text(encoding="utf-8"))))
        settings = {
            "--model": model, "--dataset": str(pieces), "--format": f"gguf:{TYPES[grid]}",
            "--nsamples": str(_SEQUENCES), "--seqlen": str(_TOKENS), "--batch_size": "8",
            "--device": "cpu", "--output_dir": str(folder),
        }  # fmt: skip
        options = [part for pair in settings.items() for part in pair]
        command = [str(python), "-m", "auto_round", *options, "--enable_alg_ext"]
        subprocess.run(command, check=True)
        found = sorted(folder.rglob("*.gguf"))
    (path,) = found
    return path


def _pieces(text: str) -> list[dict[str, str]]:
    """Pieces from all over the text, twice as many as are needed."""
    wanted = 2 * _SEQUENCES
    step = max(1, (len(text) - _CHARACTERS) // wanted)
    return [{"text": text[i * step : i * step + _CHARACTERS]} for i in range(wanted)]
