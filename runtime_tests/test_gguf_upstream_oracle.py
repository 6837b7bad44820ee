"""Upstream's converter as the oracle: the same metadata, and every tensor bit for bit.

Runs where LLAMA_CPP_TREE names a source tree of llama.cpp: its unmodified convert_hf_to_gguf.py
converts the checkpoint's exact weights, as transformers saves them, to F32. Only the name of the
pre-tokenizer is put into its mouth, which it knows from hashes of real vocabularies alone.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from exporters import gguf
from exporters.gguf.file.header import read_header
from lrqat.models.reference import load_reference
from tests.support.checkpoints import TEXT, fused
from tests.support.small_tokenizers import sentencepiece_like
from tests.support.zoo import IN_LLAMA_CPP, VOCABULARY

TREE = os.environ.get("LLAMA_CPP_TREE")
pytestmark = [
    pytest.mark.skipif(not TREE, reason="LLAMA_CPP_TREE names no source tree of llama.cpp"),
    pytest.mark.slow,
]
SENTENCEPIECE = ("gemma2", "gemma3", "phi3")  # whose converters want a tokenizer.model
DRIVER = """
import contextlib, json, runpy, sys, traceback
tree, jobs = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, tree)
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
for folder, path in jobs:
    sys.argv = [f"{tree}/convert_hf_to_gguf.py", folder, "--outfile", path, "--outtype", "f32"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except BaseException:
        with open(path + ".error", "w") as stream:
            traceback.print_exc(file=stream)
"""

# Keys that upstream leaves to llama.cpp, which takes the same from other keys or by default; and
# the further end of text of generation_config.json, which upstream does not look for.
LEFT_OUT = re.compile(
    r"\w+\.(vocab_size|attention\.(key|value)_length|rope\.dimension_count)"
    r"|\w+\.rope\.scaling\.yarn_beta_(fast|slow)"
    r"|gemma2\.rope\.freq_base|gpt2\.attention\.head_count_kv|tokenizer\.ggml\.add_(bos|eos)_token|phi3.*add_space_prefix"
    r"|tokenizer\.ggml\.eot_token_id"
)
UNREAD = "upstream writes yarn_attn_factor, if anything, which llama.cpp does not read here"
# (model, key): why the values differ.
DIFFERENT = {
    ("llama, yarn scales", "llama.rope.scaling.attn_factor"): UNREAD,
    ("qwen2, yarn", "qwen2.rope.scaling.attn_factor"): UNREAD,
    ("qwen2, yarn", "qwen2.rope.scaling.yarn_attn_factor"): UNREAD,
    **{
        (name, "gemma3.attention.sliding_window_pattern"): "upstream loses layer_types"
        for name in ("gemma3", "gemma3, yarn")
    },
    **{
        ("gemma2, yarn", f"gemma2.rope.scaling.{key}"): "upstream writes nothing of its rotation"
        for key in ("type", "factor", "original_context_length")
    },
    ("phi3, long rope", "phi3.context_length"): "the one in which llama.cpp's factors are exact",
    ("gpt2, n_inner", "gpt2.feed_forward_length"): "upstream takes it for 4 * n_embd",
    **{
        (name, f"tokenizer.ggml.{key}"): "upstream's Phi-3 takes <unk> for a control token"
        for name in ("phi3", "phi3, long rope")
        for key in ("scores", "token_type", "add_space_prefix")
    },
}
TWICE = {"olmo2, tied": {"output.weight"}}  # without which llama.cpp does not load the file
CANNOT = {"granite, llama3 rope": "ROPE_FREQS"}  # a tensor that upstream's Granite has no name for


def save_for_upstream(checkpoint, folder):
    """The exact weights as an ordinary Hugging Face folder."""
    load_reference(checkpoint).save_pretrained(folder)
    for file in checkpoint.path.glob("tokenizer*"):
        shutil.copy(file, folder)
    config = json.loads((folder / "config.json").read_text())
    if "n_positions" in config:  # GPT-2's converter reads the name that transformers 4 wrote
        config["n_ctx"] = config["n_positions"]
        (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def conversions(tmp_path_factory):
    """Name -> (header of our F32 twin, path of upstream's file)."""
    made, jobs = {}, []
    for name in IN_LLAMA_CPP:
        folder = tmp_path_factory.mktemp("model")
        tokenizer = None
        if name.partition(",")[0] in SENTENCEPIECE:
            raw = sentencepiece_like(TEXT, folder, prefix_space=False, size=VOCABULARY)
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
            )
        checkpoint = fused(name, folder / "fused", tokenizer=tokenizer)
        if tokenizer:
            shutil.copy(folder / "tokenizer.model", folder / "fused")
        plan = gguf.plan(checkpoint, gguf.Options(type="f32", float_type="f32"))
        gguf.write(plan, folder / "ours.gguf")
        save_for_upstream(checkpoint, folder / "plain")
        jobs.append([str(folder / "plain"), str(folder / "theirs.gguf")])
        made[name] = read_header(folder / "ours.gguf"), folder / "theirs.gguf"
    command = [sys.executable, "-c", DRIVER, str(TREE), json.dumps(jobs)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(command, env=environment, timeout=560, check=True, capture_output=True)
    return made


@pytest.mark.parametrize("name", IN_LLAMA_CPP)
def test_the_file_is_upstreams(name, conversions):
    ours, path = conversions[name]
    if name in CANNOT:
        assert CANNOT[name] in path.with_suffix(".gguf.error").read_text()
        return
    theirs = read_header(path)
    assert set(ours.tensors) - set(theirs.tensors) == TWICE.get(name, set())
    for tensor, info in theirs.tensors.items():
        assert (ours.tensors[tensor].shape, ours.tensors[tensor].type) == (info.shape, info.type)
        np.testing.assert_array_equal(ours.tensors[tensor].read(), info.read(), err_msg=tensor)
    differing = {
        key
        for key in {*ours.metadata, *theirs.metadata}
        if not np.array_equal(ours.metadata.get(key), theirs.metadata.get(key))
        and not key.startswith(("general.", "lrqat."))
        and not (key not in theirs.metadata and LEFT_OUT.fullmatch(key))
    } - {"tokenizer.ggml.add_sep_token"}  # which upstream alone writes, as false
    assert differing == {key for model, key in DIFFERENT if model == name}
    assert ours.metadata["general.architecture"] == theirs.metadata["general.architecture"]
