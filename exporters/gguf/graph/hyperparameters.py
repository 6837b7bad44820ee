"""What decoders have in common in GGUF: key/values, and what most graphs cannot compute.

The keys are those of src/llama-arch.cpp; `llama_model_base::load_hparams` in src/llama-model.cpp
reads them.
"""

from dataclasses import replace

from exporters.gguf.architecture import Architecture, Config
from exporters.gguf.file import key_values as kv
from exporters.gguf.file.key_values import KeyValue
from exporters.gguf.graph.config_values import (
    positive_float,
    positive_int,
    read_heads,
    rope_parameters,
    sliding_layers,
)
from exporters.gguf.graph.yarn import refuses_yarn, yarn_entries


def hyperparameters(architecture: Architecture, config: Config) -> list[KeyValue]:
    """The `<architecture>.*` entries. Raises CheckpointError if config.json makes no sense."""
    config = architecture.read(config)
    heads = read_heads(config)
    own_epsilon, epsilon = architecture.epsilon
    usual = [
        kv.count("vocab_size", positive_int(config, "vocab_size")),
        kv.count("context_length", positive_int(config, "max_position_embeddings")),
        kv.count("embedding_length", positive_int(config, "hidden_size")),
        kv.count("block_count", positive_int(config, "num_hidden_layers")),
        kv.count("feed_forward_length", positive_int(config, "intermediate_size")),
        kv.count("attention.head_count", heads.query),
        kv.count("attention.head_count_kv", heads.key_value),
        kv.count("attention.key_length", heads.size),
        kv.count("attention.value_length", heads.size),
        kv.single(f"attention.{epsilon}", positive_float(config, own_epsilon)),
        *_rope(architecture, config, heads.size),
    ]
    by_key = {entry.key: entry for entry in [*usual, *architecture.hyperparameters(config)]}
    return [replace(entry, key=f"{architecture.name}.{key}") for key, entry in by_key.items()]


def refusals(architecture: Architecture, config: Config) -> list[str]:
    """What llama.cpp's graph cannot compute of `config`; empty if nothing."""
    config = architecture.read(config)
    found = [
        *_activation(architecture, config),
        *_rotation(architecture, config),
        *_window(architecture, config),
        *_heads(architecture, config),
    ]
    if config.get("use_bidirectional_attention") or config.get("is_causal") is False:
        found.append("attention looks ahead; llama.cpp's graph is causal")
    if architecture.head == "tied" and not config.get("tie_word_embeddings"):
        found.append("the head is not the embedding (tie_word_embeddings); llama.cpp uses that")
    return found + architecture.refuses(config)


def _rope(architecture: Architecture, config: Config, head_dim: int) -> list[KeyValue]:
    if not architecture.rope_types:
        return []
    rope = rope_parameters(config)
    entries = [
        kv.count("rope.dimension_count", head_dim),
        kv.single("rope.freq_base", positive_float(rope, "rope_theta")),
    ]
    if rope["rope_type"] == "linear":
        entries.append(kv.text("rope.scaling.type", "linear"))
        entries.append(kv.single("rope.scaling.factor", positive_float(rope, "factor")))
    return entries + (yarn_entries(config) if rope["rope_type"] == "yarn" else [])


def _activation(architecture: Architecture, config: Config) -> list[str]:
    found, known = config.get("hidden_act"), architecture.activation
    if found in known:
        return []
    return [f"the activation is {found!r}; llama.cpp's graph has {' or '.join(known)}"]


def _rotation(architecture: Architecture, config: Config) -> list[str]:
    if not architecture.rope_types:
        return []
    reasons, rope = [], rope_parameters(config)
    if rope["rope_type"] not in architecture.rope_types:
        reasons.append(
            f"rope type {rope['rope_type']!r} has no exact form yet; known are "
            f"{architecture.rope_types}"
        )
    elif rope["rope_type"] == "yarn":
        reasons += refuses_yarn(config)
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if share not in (None, 1) and not architecture.partial_rotation:
        reasons.append(f"{share} of a head is rotated; llama.cpp's graph rotates all of it")
    return reasons


def _window(architecture: Architecture, config: Config) -> list[str]:
    if architecture.windows or not any(sliding_layers(config)):
        return []
    window = positive_int(config, "sliding_window")
    context = positive_int(config, "max_position_embeddings")
    if window >= context:
        return []
    return [
        f"attention slides over {window} of {context} positions, which llama.cpp's graph "
        f"ignores; set max_position_embeddings to {window} in config.json before training"
    ]


def _heads(architecture: Architecture, config: Config) -> list[str]:
    heads, hidden = read_heads(config), positive_int(config, "hidden_size")
    reasons = []
    if heads.query % heads.key_value or heads.size % 2:
        reasons.append(
            f"{heads.query} heads, {heads.key_value} key-value heads of {heads.size} do not divide"
        )
    if architecture.whole_heads and heads.query * heads.size != hidden:
        reasons.append(
            f"{heads.query} heads of {heads.size} are not the hidden size {hidden}, which "
            f"llama.cpp's {architecture.name} takes them to be"
        )
    return reasons
