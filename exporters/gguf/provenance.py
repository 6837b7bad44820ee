"""General metadata, and `lrqat.*`: where the file comes from and what it was measured at.

Nothing here depends on the time or the machine, so the same checkpoint gives the same bytes.
"""

from typing import Any

import gguf

from exporters.gguf import key_values as kv
from exporters.gguf.key_values import KeyValue
from lrqat import __version__
from lrqat.checkpoint import Checkpoint
from lrqat.manifest import FILE_NAME, sha256_of


def general_metadata(checkpoint: Checkpoint, file_type: gguf.LlamaFileType) -> list[KeyValue]:
    """The `general.*` entries except the architecture."""
    entries = [kv.text("general.type", "model")]
    name = checkpoint.manifest["base_model"].get("name")
    if isinstance(name, str) and name:
        entries.append(kv.text("general.name", name))
    entries.append(kv.count("general.file_type", int(file_type)))
    entries.append(kv.count("general.quantization_version", gguf.GGML_QUANT_VERSION))
    return entries


def provenance(checkpoint: Checkpoint) -> list[KeyValue]:
    """The `lrqat.*` entries; those that lrqat.json does not say are left out."""
    manifest = checkpoint.manifest
    tool, base = manifest["tool"], manifest["base_model"]
    training = manifest.get("training") or {}
    found: list[KeyValue | None] = [
        kv.text("lrqat.exporter_version", __version__),
        _text("lrqat.version", tool.get("version")),
        _text("lrqat.git_commit", tool.get("git_commit")),
        _text("lrqat.grid", ",".join(sorted(checkpoint.grids))),
        _text("lrqat.base_model", base.get("name")),
        _text("lrqat.base_model_revision", base.get("revision")),
        _text("lrqat.data_sha256", training.get("data_sha256", training.get("sha256"))),
        kv.text("lrqat.checkpoint_sha256", sha256_of(checkpoint.path / FILE_NAME)),
    ]
    return [entry for entry in found if entry] + _reference(manifest.get("reference"))


def _reference(reference: Any) -> list[KeyValue]:
    if not isinstance(reference, dict):
        return []
    prefix = "lrqat.reference."
    found = [_number(prefix + key, reference.get(key)) for key in ("perplexity", "standard_error")]
    found += [_whole(prefix + key, reference.get(key)) for key in ("tokens", "context")]
    found += [_text(prefix + key, reference.get(key)) for key in ("rule", "data", "data_sha256")]
    return [entry for entry in found if entry]


def _text(key: str, value: Any) -> KeyValue | None:
    return kv.text(key, value) if isinstance(value, str) and value else None


def _number(key: str, value: Any) -> KeyValue | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return kv.double(key, float(value)) if is_number else None


def _whole(key: str, value: Any) -> KeyValue | None:
    is_whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64
    return kv.count64(key, value) if is_whole else None
