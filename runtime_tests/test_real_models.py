"""Models that others trained, from the fused checkpoint to both runtimes.

One has a sentencepiece tokenizer and a tied head, the other byte-level BPE and bfloat16. They are
rounded, not perturbed: on a model that noise has ruined PyTorch's own float32 is 5e-4 from float64,
and no bound would mean anything.
"""

import functools

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lrqat.checkpoint.reader import Checkpoint
from lrqat.evaluation.text import encode
from lrqat.models import fuse, hub, preparation, surgery
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.genai import generate_tokens
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime
from lrqat.runtimes.parity import L1_POSITIONS, prove
from tests.support.paths import SHARED, shared_model
from tests.support.proofs import assert_proved, export_both

# Name -> text of its kind, tokens a window, a prompt.
MODELS = {
    "stories260k": ("tinystories-sample.txt", 256, "Once upon a time, there was a"),
    "pycode-8m": ("pycode/valid.txt", 512, "def read_file(path):\n    "),
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("path", [shared_model(name) for name in MODELS]),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Function of a model's folder -> its q4_0 checkpoint, and both files."""

    @functools.cache
    def make(path):
        model = hub.load_model(str(path), dtype=torch.float32)
        plan = surgery.plan_surgery(model, "q4_0")
        preparation.prepare(model, plan)
        dtype = str(hub.load_config(str(path)).dtype).removeprefix("torch.")
        base = {"name": path.name, "revision": None, "dtype": dtype}
        folder = tmp_path_factory.mktemp("real") / "fused"
        fuse.fuse(model, hub.load_tokenizer(path), folder, plan=plan, base_model=base)
        return folder, export_both(folder)

    return make


def text_for(path):
    return (SHARED / "data" / MODELS[path.name][0]).read_text(encoding="utf-8")[:120_000]


def test_both_files_are_proved(path, exported):
    folder, files = exported(path)
    assert_proved(prove(folder, files, text_for(path), context=MODELS[path.name][1], limit=12))


def test_llama_cpp_reads_and_writes_its_text(path, exported):
    folder, (file, _) = exported(path)
    text, prompt = text_for(path)[:4000], MODELS[path.name][2]
    with LlamaCpp.open(file) as llama:
        tokens = llama.tokenize(text, add_special=True)[:L1_POSITIONS]
        assert text.startswith(llama.detokenize(tokens))
        words = llama.detokenize(llama.tokenize("Once upon a time", add_special=False))
        assert words.strip() == "Once upon a time"
        continued = llama.generate(prompt, 40)
        assert len(set(continued.split())) > 1
        assert llama.generate(prompt, 40) == continued
        real = llama.logits(tokens)
    expected = torch_logits(load_reference(Checkpoint.open(folder)))(np.asarray(tokens))
    # 8-bit activations move logits a little and the best token rarely.
    assert (real.argmax(1) == expected.argmax(1)).mean() > 0.9


def test_onnx_runtime_over_a_whole_window_and_genai(path, exported):
    folder, (_, onnx_folder) = exported(path)
    tokenizer = hub.load_tokenizer(onnx_folder)
    tokens = np.asarray(encode(tokenizer, text_for(path)[:10_000])[:512])
    expected = torch_logits(load_reference(Checkpoint.open(folder)))(tokens)
    with OnnxRuntime.open(onnx_folder) as session:
        assert np.abs(session.logits(tokens) - expected).max() < 1e-4
    prompt = MODELS[path.name][2]
    ids, continuation = generate_tokens(onnx_folder, prompt, 32)
    assert ids == tokenizer(prompt)["input_ids"]
    # transformers reads the fused checkpoint by itself.
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    greedy = loaded.generate(
        torch.tensor([ids]), max_new_tokens=32, do_sample=False, pad_token_id=0
    )
    assert continuation == greedy[0, len(ids) :].tolist()
    assert len(continuation) == 32
    assert len(set(continuation)) > 8, "it has learned more than to repeat itself"
