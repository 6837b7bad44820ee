"""General metadata, and `lrqat.*`: where the file comes from and what it was measured at.

Nothing here depends on the time or the machine, so the same checkpoint gives the same bytes.
"""

from collections.abc import Callable
from typing import Any

import gguf

from exporters.gguf.file import key_values as kv
from exporters.gguf.file.key_values import KeyValue
from exporters.gguf.naming import naming_metadata
from exporters.provenance import provenance as facts
from lrqat.checkpoint.reader import Checkpoint

CONVERTER = "lrqat.converter"  # only in files that llama.cpp's own converter has laid out


def general_metadata(checkpoint: Checkpoint, file_type: int) -> list[KeyValue]:
    """The `general.*` entries except the architecture."""
    entries = [kv.text("general.type", "model"), *naming_metadata(checkpoint)]
    entries.append(kv.count("general.file_type", int(file_type)))
    entries.append(kv.count("general.quantization_version", gguf.GGML_QUANT_VERSION))
    return entries


def provenance(checkpoint: Checkpoint) -> list[KeyValue]:
    """The `lrqat.*` entries."""
    return [_STORED[type(value)](key, value) for key, value in facts(checkpoint).items()]


_STORED: dict[type, Callable[[str, Any], KeyValue]] = {
    str: kv.text,
    int: kv.count64,
    float: kv.double,
}
