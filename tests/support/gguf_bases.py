"""GGUF files of tiny models as base models, written by our exporter."""

import numpy as np

from exporters import gguf
from exporters.gguf.file.header import Header
from tests.support.checkpoints import fused


def gguf_of(config, folder, **settings):
    """The fused checkpoint of a random model of a configuration, and its file."""
    checkpoint = fused(config, folder / "fused", **settings)
    path = folder / "tiny.gguf"
    gguf.write(gguf.plan(checkpoint), path, workers=1)
    return checkpoint, path


def header_of(vocabulary):
    """What a file of that vocabulary says, without a model."""
    entries = {entry.key: entry.value for entry in vocabulary.metadata()}
    return Header(
        {
            key: np.array(value)
            if isinstance(value, list) and not isinstance(value[0], str)
            else value
            for key, value in entries.items()
        },
        {},
    )
