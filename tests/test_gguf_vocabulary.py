"""Tokenizers in GGUF: llama.cpp gives the ids that Hugging Face gives."""

import json
import random
import shutil

import pytest
from made_tokenizers import SIZE, byte_level, sentencepiece_like
from tokenizers import AddedToken, Tokenizer
from tokenizers import processors as post

from conftest import SHARED, shared_model
from exporters import gguf
from exporters.gguf.vocabulary import TokenizerFiles
from exporters.gguf.vocabulary.pre_tokenizers import PRE_TOKENIZERS
from lrqat.checkpoint import Checkpoint
from lrqat.errors import RuntimeUnavailableError

POOLS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789",
    " \t\n",
    " \n\r",
    ".,;:!?'\"()[]{}<>=+-*/\\|&^%$#@~`_",
    "éüñßøÉÜŁžçàА я Б ж Ω λ".replace(" ", ""),
    "漢字仮名カナ한국어العربيةहिन्दी",
    "🚀😀🦙👩‍💻✅½²³",
    "e\u0301\u200b\u00a0\u3000\ufeff",
)
FIXED = (
    "",
    "a",
    "  two  spaces\tand\ttabs\n\n\nlines \r\n",
    "I've they'RE we'll 'quoted' can't I'M",
    "1234567 3.14159 1,000,000 0x1F",
    "def f(x: int) -> str:\n    return f'{x!r}'  # comment\n",
    "x" * 300,
    " " * 40 + "indented",
    "<s> is text, and <0x41> too </s>",
    "trailing   ",
)


def strings(count=300):
    rng = random.Random(5)
    made = list(FIXED)
    while len(made) < count:
        pools = rng.choices(POOLS, weights=(8, 3, 4, 1, 4, 2, 2, 1, 1), k=rng.randint(1, 30))
        made.append("".join(rng.choice(pool) for pool in pools for _ in range(rng.randint(1, 4))))
    return made


def checkpoint_with(fused, folder, tokenizer, **settings):
    """A copy of the fused checkpoint `fused` with another tokenizer of the same size."""
    shutil.copytree(fused, folder, dirs_exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return Checkpoint.open(folder, verify=False)


def opened(checkpoint, folder, options=None):
    try:
        from runtime_tests.llama_cpp import LlamaCpp

        path = folder / "model.gguf"
        gguf.write(gguf.plan(checkpoint, options), path, overwrite=True)
        return LlamaCpp.open(path)
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))


def assert_same_tokens(llama, tokenizer, texts):
    for each in texts:
        expected = tokenizer.encode(each, add_special_tokens=False).ids
        assert llama.tokenize(each, add_special=False) == expected, repr(each)


@pytest.mark.parametrize(("key", "name"), PRE_TOKENIZERS.items(), ids=list(PRE_TOKENIZERS.values()))
def test_byte_level_gives_the_same_tokens(key, name, fused_checkpoint, text, tmp_path):
    tokenizer = byte_level(text, *key)
    checkpoint = checkpoint_with(fused_checkpoint, tmp_path / "fused", tokenizer)
    with opened(checkpoint, tmp_path) as llama:
        assert not llama.add_bos
        assert_same_tokens(llama, tokenizer, strings())
        sample = text[:5000]
        assert_same_tokens(llama, tokenizer, [sample, *sample.splitlines(keepends=True)])
        assert llama.detokenize(llama.tokenize(sample, False)) == sample


@pytest.mark.parametrize("with_model", [True, False], ids=["tokenizer.model", "merges"])
@pytest.mark.parametrize("prefix_space", [True, False])
def test_sentencepiece_gives_the_same_tokens(
    with_model, prefix_space, fused_checkpoint, text, tmp_path
):
    folder = tmp_path / "fused"
    folder.mkdir()
    tokenizer = sentencepiece_like(text, folder, prefix_space)
    if not with_model:
        (folder / "tokenizer.model").unlink()
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}
    checkpoint = checkpoint_with(fused_checkpoint, folder, tokenizer, **names)
    # Control tokens spelt out in a text are text in llama.cpp and tokens in Hugging Face.
    plain = [each for each in strings() if "<s>" not in each]
    with opened(checkpoint, tmp_path) as llama:
        assert (llama.add_bos, llama.bos, llama.eos) == (True, 1, 2)
        assert_same_tokens(llama, tokenizer, plain)
        sample = text[:5000]
        assert_same_tokens(llama, tokenizer, [sample])
        assert llama.detokenize(llama.tokenize(sample, add_special=True)) == sample


@pytest.mark.parametrize(
    ("model", "source"),
    [
        (shared_model("stories260k").values[0], "tinystories-sample.txt"),
        (shared_model("pycode-8m").values[0], "pycode/valid.txt"),
    ],
    ids=["stories260k", "pycode-8m"],
)
def test_shared_models_give_the_same_tokens(model, source, make_fused, tmp_path):
    if not model.is_dir():
        pytest.skip("no shared models")
    keep = ["down_proj"] if model.name == "stories260k" else []
    checkpoint = Checkpoint.open(make_fused("q4_0", source=model, keep=keep))
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    whole = (SHARED / "data" / source).read_text(encoding="utf-8")
    # Hugging Face's Metaspace adds no second space before a text that starts with one: a note.
    texts = [each for each in strings() if not each.startswith(" ") and "<s>" not in each]
    with opened(checkpoint, tmp_path) as llama:
        assert_same_tokens(llama, tokenizer, [*texts, *whole.splitlines(), whole.lstrip()])
        expected = tokenizer.encode(whole.lstrip()).ids
        assert llama.tokenize(whole.lstrip(), add_special=True) == expected


def test_added_tokens_special_ids_and_template(fused_checkpoint, text, tmp_path):
    tokenizer = byte_level(text, (("bytes", True),), False, size=SIZE - 3)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer.add_special_tokens(["<|im_end|>"])
    end = tokenizer.token_to_id("<|im_end|>")
    tokenizer.post_processor = post.TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>",
        special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", end)],
    )
    folder = tmp_path / "fused"
    names = {"eos_token": "<|im_end|>", "chat_template": [{"name": "default", "template": "{{x}}"}]}
    checkpoint = checkpoint_with(fused_checkpoint, folder, tokenizer, **names)
    values = {entry.key: entry.value for entry in gguf.plan(checkpoint).metadata}
    assert values["tokenizer.ggml.bos_token_id"] == 0
    assert values["tokenizer.ggml.eos_token_id"] == end
    assert values["tokenizer.ggml.add_bos_token"] is True
    assert values["tokenizer.ggml.add_eos_token"] is True
    assert values["tokenizer.chat_template"] == "{{x}}"
    assert values["tokenizer.ggml.token_type"][tokenizer.token_to_id("<tool>")] == 4
    assert values["tokenizer.ggml.token_type"][end] == 3
    assert values["tokenizer.ggml.tokens"][-1] == f"[PAD{SIZE - 1}]"
    (folder / "chat_template.jinja").write_text("from the file")
    assert TokenizerFiles.open(folder, {}).chat_template() == "from the file"
    with opened(checkpoint, tmp_path) as llama:
        assert_same_tokens(llama, tokenizer, ["a<tool>b", "<tool><tool> x"])
        assert llama.tokenize("hi", add_special=True) == tokenizer.encode("hi").ids
        assert llama.tokenize("<|im_end|>", False, parse_special=True) == [end]
