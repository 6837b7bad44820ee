"""The files beside the graph: tokenizer, configuration, and what ONNX Runtime GenAI reads."""

import shutil
from pathlib import Path
from typing import Any

from exporters.end_tokens import end_tokens, one_or_list
from exporters.onnx.folder.external_data import data_paths
from exporters.onnx.folder.model_file import MODEL
from exporters.onnx.folder.readme import readme
from exporters.onnx.plans import Plan
from exporters.onnx.tracing.trace import cache_name
from lrqat.architectures import genai_type
from lrqat.atomic_files import write_json
from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.roles import Role, role_of
from lrqat.foreign_files import read_json


def write_companions(plan: Plan, folder: Path, model_config: Any) -> None:
    """Write everything but the model into `folder`.

    Args:
        plan: the export.
        folder: where model.onnx lies.
        model_config: the transformers configuration of the traced model.
    """
    copy_text_files(plan.checkpoint, folder)
    config = {k: v for k, v in plan.checkpoint.config.items() if k != "quantization_config"}
    write_json(folder / "config.json", config | {"transformers.js_config": js_config(folder)})
    if plan.refuses_genai is None:
        write_json(folder / "genai_config.json", genai_config(plan, model_config))
    (folder / "README.md").write_text(readme(plan, folder), encoding="utf-8")


def copy_text_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy tokenizer, chat templates and generation settings: those that the manifest lists."""
    for name in sorted(checkpoint.files):
        source = checkpoint.file(name)
        if role_of(name) is Role.TEXT and source is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, folder / name)


def js_config(folder: Path) -> dict[str, Any]:
    """The `transformers.js_config` of config.json: which model, and how many files of weights.

    Its dtype fp32 is the file without a suffix, model.onnx. Source: transformers.js,
    src/utils/model-loader.js and dtypes.js.
    """
    return {
        "dtype": "fp32",
        "use_external_data_format": {MODEL: len(data_paths(folder))},
    }


def genai_config(plan: Plan, model_config: Any) -> dict[str, Any]:
    """The genai_config.json of a decoder-only model with a growing cache.

    Source: onnxruntime-genai, src/config.cpp and its model builder.
    """
    text = model_config.get_text_config()
    generation = _read_json(plan.checkpoint.file("generation_config.json"))
    special = {
        key: generation.get(key, getattr(text, key, None))
        for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    ends = end_tokens(plan.checkpoint.path, text.to_dict())
    if ends:
        special["eos_token_id"] = one_or_list(ends)
    if special["pad_token_id"] is None:  # required by the runtime; only batches use it
        special["pad_token_id"] = ends[0] if ends else 0
    context = int(text.max_position_embeddings)
    return {
        "model": {
            "type": genai_type(text.model_type),
            **{key: value for key, value in special.items() if value is not None},
            "context_length": context,
            "vocab_size": int(text.vocab_size),
            "decoder": _decoder(plan, text),
        },
        "search": {
            "do_sample": False,
            "max_length": context,
            # The graph returns the whole cache as a new tensor, so no buffer can be shared.
            "past_present_share_buffer": False,
        },
    }


def _decoder(plan: Plan, text: Any) -> dict[str, Any]:
    assert plan.cache is not None  # a plan without has refusals
    layers, kv_heads, head_size = plan.cache
    return {
        "filename": "model.onnx",
        "head_size": head_size,
        "hidden_size": int(text.hidden_size),
        "num_attention_heads": int(text.num_attention_heads),
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": cache_name("past_key_values", "%d", "key"),
            "past_value_names": cache_name("past_key_values", "%d", "value"),
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": cache_name("present", "%d", "key"),
            "present_value_names": cache_name("present", "%d", "value"),
        },
        "session_options": {
            "log_id": "onnxruntime-genai",
            "provider_options": [],
            **plan.session_entries,
        },
    }


def _read_json(path: Path | None) -> dict[str, Any]:
    return {} if path is None else read_json(path)
