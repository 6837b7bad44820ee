"""What a GGUF file holds, ours or anybody's; nothing but headers is read."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from exporters.description import Description, plain_items, totals
from exporters.gguf.file.shards import model_files, read_model

_VOCABULARY = "tokenizer."


def inspect(path: Path) -> Description:
    """Describe the GGUF file `path`, of several the first. Types that gguf-py lacks have numbers.

    Raises:
        GgufFileError: a file that is truncated, altered or not one at all.
    """
    header = read_model(path, unknown_types=True)
    files = model_files(path)
    said = header.metadata
    architecture = said.get("general.architecture")
    own = f"{architecture}." if isinstance(architecture, str) else "general.architecture"
    return Description(
        kind="GGUF",
        files=[file.name for file in files],
        bytes=sum(file.stat().st_size for file in files),
        types=totals(
            (info.type_name, math.prod(info.shape), info.nbytes) for info in header.tensors.values()
        ),
        hyperparameters=plain_items({k: v for k, v in said.items() if k.startswith(own)}),
        vocabulary=plain_items(
            {k: _counted(v) for k, v in said.items() if k.startswith(_VOCABULARY)}
        ),
        provenance=plain_items(
            {k: v for k, v in said.items() if not k.startswith((own, _VOCABULARY))}
        ),
    )


def _counted(value: Any) -> Any:
    """The length of a list, which is a vocabulary's or its merges'."""
    return len(value) if isinstance(value, list | np.ndarray) else value
