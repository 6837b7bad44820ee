"""The `general.*` entries that hubs and runtimes show: names, base, licence, tags, sampling.

They are worked out by gguf-py's own `Metadata`, as llama.cpp's convert_hf_to_gguf.py has it do,
from what the checkpoint says of the model that it came from and from its generation settings.
"""

import math
import re
from typing import Any

import gguf

from exporters.gguf.file.key_values import KeyValue
from lrqat.cards.origin import Origin, own_tags
from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.foreign_files import ForeignFileError, read_json

_GENERATION = "generation_config.json"
_PIPELINE = "text-generation"
_MOST_CHARACTERS = 200  # of a name; longer ones are nobody's, and slow to take apart
# What a GGUF file that was the base adds to its model's name.
_SUFFIX = re.compile(r"([.-](i?q\d\w*|b?f(16|32)|mxfp4\w*))?\.gguf$", re.IGNORECASE)
# By this spelling llama.cpp gives some tokens the attributes that Phi 3's have (llama-vocab.cpp),
# and a title has no hyphens.
_CALLED_PHI3 = "phi-3"
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
# Settings of `generate`, the fields of gguf-py's `Metadata` for them, and what they have to be.
_SAMPLING = {
    "top_k": ("sampling_top_k", int, 0, 1 << 30),
    "top_p": ("sampling_top_p", float, 0, 1),
    "min_p": ("sampling_min_p", float, 0, 1),
    "temperature": ("sampling_temp", float, 0, 100),
    "repetition_penalty": ("sampling_penalty_repeat", float, 0, 100),
}


def naming_metadata(checkpoint: Checkpoint) -> list[KeyValue]:
    """The entries, in gguf-py's order; what is not known is left out."""
    origin = Origin.of_manifest(checkpoint.manifest)
    total, shared, expert, count = _parameters(checkpoint)
    card = {
        "license": origin.license,
        "license_name": origin.license_name,
        "license_link": origin.license_link,
        "base_model": origin.repository,
        "tags": own_tags(checkpoint.manifest),
        "pipeline_tag": _PIPELINE,
        "language": list(origin.languages),
    }
    name = checkpoint.manifest["base_model"].get("name")
    named = isinstance(name, str) and 0 < len(name) <= _MOST_CHARACTERS
    found = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(),
        {key: value for key, value in card.items() if value},
        {"_name_or_path": _SUFFIX.sub("", str(name))} if named else {},
        total_params=total,
    )
    if named and _CALLED_PHI3 in str(name).lower():
        found.name = str(name).rpartition("/")[2]
    if found.size_label is None:
        found.size_label = gguf.size_label(total, shared, expert, count)
    for field, value in sampling(checkpoint).items():
        setattr(found, field, value)
    return _entries(found)


def sampling(checkpoint: Checkpoint) -> dict[str, Any]:
    """What generation_config.json asks samplers for, by the fields of gguf-py's `Metadata`.

    Nothing where it asks for the most likely token, which is how transformers reads its silence.
    """
    path = checkpoint.file(_GENERATION)
    try:
        said = {} if path is None else read_json(path)
    except ForeignFileError:
        said = {}
    if said.get("do_sample") is not True:
        return {}
    found = {}
    for key, (field, kind, least, most) in _SAMPLING.items():
        value: Any = said.get(key)
        if type(value) in (int, kind) and least <= value <= most:
            found[field] = kind(value)
    return found


def _parameters(checkpoint: Checkpoint) -> tuple[int, int, int, int]:
    """Weights in all, of them those outside experts, of one expert, and how many experts there are.

    As gguf-py's `GGUFWriter.get_total_parameter_count` gives them.
    """
    names = [*checkpoint.quantized_names, *checkpoint.floating_names]
    sizes = {name: math.prod(checkpoint.shape(name)) for name in names}
    total = sum(sizes.values())
    experts = sum(
        sizes[n] for n in checkpoint.quantized_names if checkpoint.kind(n) == WeightKind.EXPERTS
    )
    said = (checkpoint.config.get(key) for key in _EXPERTS)
    count = next((value for value in said if type(value) is int and value > 0), 0)
    if not experts or not count:
        return total, total, 0, 0
    return total, total - experts, experts // count, count


def _entries(found: gguf.Metadata) -> list[KeyValue]:
    """What gguf-py would write of it."""
    found.name = found.name or ""
    writer = gguf.GGUFWriter(None, "")
    found.set_gguf_meta_model(writer)
    return [
        KeyValue(key, entry.value, entry.type, entry.sub_type or _items_of(entry.value))
        for key, entry in writer.kv_data[0].items()
        if entry.value not in ("", []) and key != gguf.Keys.General.ARCHITECTURE
    ]


def _items_of(value: Any) -> gguf.GGUFValueType | None:
    """How the items of a list are stored; None for what is no list."""
    return gguf.GGUFValueType.STRING if isinstance(value, list) else None
