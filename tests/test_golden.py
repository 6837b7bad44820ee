"""The bytes of the exports of fixed checkpoints: whatever is rebuilt inside, they stay.

`tests/golden.json` has their sha256. A change that is meant to change bytes records them anew:

    python tests/test_golden.py

The checkpoints are made of integer random numbers by operations that round alike on every
processor; the hashes belong to the versions in constraints.txt.
"""

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from exporters import gguf, onnx, onnx_genai
from exporters.onnx_genai import planning
from lrqat.atomic_files import write_json
from lrqat.checkpoint import manifest
from lrqat.checkpoint.reader import Checkpoint
from lrqat.models import fuse, preparation, surgery

RECORDED = Path(__file__).with_name("golden.json")
# Frequencies 1/theta^(2i/d) are exact: 16^(1/4) = 2.
CONFIG = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 8,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 16.0},
}  # fmt: skip
GRIDS_OF_GGUF = {
    r"0\.self_attn\.q": "q4_0", r"0\.self_attn\.k": "q4_1", r"0\.self_attn\.v": "q6_k",
    r"0\.self_attn\.o": "q5_0", r"0\.mlp\.gate": "q4_k", r"0\.mlp\.up": "q5_k",
    r"0\.mlp\.down": "q3_k", r"1\.self_attn\.q": "q2_k", r"1\.self_attn\.k": "iq4_nl",
    r"1\.self_attn\.v": "mxfp4", r"1\.self_attn\.o": "tq2_0", r"1\.mlp\.gate": "tq1_0",
    r"1\.mlp\.up": "q2_0", r"1\.mlp\.down": "int4-g256", "embed_tokens": "q8_0",
}  # fmt: skip
GRIDS_OF_ONNX = {
    r"0\.self_attn\.q": "int4-g32", r"0\.self_attn\.k": "int4-asym-g64",
    r"0\.self_attn\.v": "int8-channel", r"0\.self_attn\.o": "int3-asym-channel",
    r"0\.mlp\.gate": "int2-g128", r"0\.mlp\.up": "q6_k", r"0\.mlp\.down": "iq4_nl",
    "lm_head": "int8-asym-g32",
}  # fmt: skip


def fixed_model(tied):
    """A Llama whose weights are small integers over a power of two."""
    config = LlamaConfig(**CONFIG, tie_word_embeddings=tied)
    model = LlamaForCausalLM(config).float()
    rng = np.random.default_rng(20261129)
    for parameter in model.parameters():
        draw = rng.integers(-255, 256, tuple(parameter.shape)).astype(np.float32)
        values = draw / 2**12 if parameter.ndim == 2 else 1 + draw / 2**10
        parameter.data = torch.from_numpy(values).to(parameter.dtype)
    return model


def fixed_tokenizer():
    """Byte-level BPE of 512 tokens that nobody trained: bytes, and pairs of letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = "etaoinshrdlcumwf"
    merges = [(a, b) for a in letters for b in letters][: 512 - 1 - len(alphabet)]
    tokens = ["<|endoftext|>", *alphabet, *(a + b for a, b in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def fixed_checkpoint(folder, grid, grid_for=None, tied=False):
    """A fused checkpoint that does not say which commit made it, nor by which words."""
    model = fixed_model(tied)
    plan = surgery.plan_surgery(model, grid, grid_for=grid_for)
    preparation.prepare(model, plan, preparation.Settings(rank=2, range_init="minmax"))
    for _, layer in preparation.quantized_layers(model):
        layer.lora_a.data.zero_()
    base = {"name": "golden", "revision": None, "dtype": "float32"}
    fuse.fuse(model, fixed_tokenizer(), folder, plan=plan, base_model=base)
    (folder / "README.md").unlink()
    path = folder / manifest.FILE_NAME
    facts = json.loads(path.read_text(encoding="utf-8"))
    del facts["files"]["README.md"]
    facts["tool"] = {"name": "lrqat", "version": "0.1.0", "git_commit": "0" * 40}
    write_json(path, facts)
    return Checkpoint.open(folder)


def export_gguf(folder, options, **of):
    checkpoint = fixed_checkpoint(folder / "fused", **of)
    gguf.write(gguf.plan(checkpoint, gguf.Options(**options)), folder / "model.gguf")
    return [folder / "model.gguf"]


def _folder(exporter, folder, options, of):
    checkpoint = fixed_checkpoint(folder / "fused", **of)
    exporter.write(exporter.plan(checkpoint, exporter.Options(**options)), folder / "made")
    # README.md is prose.
    return sorted(p for p in (folder / "made").iterdir() if p.is_file() and p.suffix != ".md")


def export_onnx(folder, options, **of):
    return _folder(onnx, folder, options, of)


def export_genai(folder, options, **of):
    # The graph is the work of onnxruntime-genai's builder; what was trained is in its data.
    with pytest.MonkeyPatch.context() as patch:
        # ONNX Runtime runs no graph of the builder's with heads of 8 numbers; this one is not run.
        patch.setattr(planning, "_refuses_heads", lambda checkpoint: [])
        made = _folder(onnx_genai, folder, options, of)
    return [path for path in made if path.name != "model.onnx"]


MIXED_GGUF = {"grid": "q4_0", "grid_for": GRIDS_OF_GGUF, "tied": True}
MIXED_ONNX = {"grid": "int4-g128", "grid_for": GRIDS_OF_ONNX}
CASES = {
    "gguf-mixed": (export_gguf, {}, MIXED_GGUF),
    "gguf-f32-twin": (export_gguf, {"type": "f32"}, MIXED_GGUF),
    "gguf-rounded-embedding": (
        export_gguf, {"embedding_type": "q8_0", "head_type": "q6_k"}, {"grid": "q4_0"},
    ),
    "onnx-cpu": (export_onnx, {}, MIXED_ONNX),
    "onnx-webgpu": (export_onnx, {"preset": "webgpu"}, {"grid": "int3-asym-g64"}),
    "onnx-qnn": (export_onnx, {"preset": "qnn", "embedding_type": "int8"}, {"grid": "int4-g32"}),
    "onnx-genai": (export_genai, {}, {"grid": "int4-g32"}),
}  # fmt: skip


def hashes(name, folder):
    """sha256 by file name of one case."""
    export, options, of = CASES[name]
    made = export(folder, options, **of)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made}


@pytest.mark.parametrize("name", CASES)
def test_exports_have_the_bytes_they_always_had(name, tmp_path):
    assert hashes(name, tmp_path) == json.loads(RECORDED.read_text(encoding="utf-8"))[name]


if __name__ == "__main__":
    found = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as made:
            found[case] = hashes(case, Path(made))
    write_json(RECORDED, found)
