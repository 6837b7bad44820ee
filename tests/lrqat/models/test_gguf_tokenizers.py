"""The tokenizer of a GGUF file: as it was before it was exported."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from exporters.gguf.vocabulary.pre_tokenizer_table import ROWS
from lrqat.errors import ModelError
from lrqat.models.from_gguf.tokenizer import write_tokenizer
from tests.support.gguf_bases import header_of
from tests.support.small_tokenizers import byte_level, sentencepiece_like, unigram_like
from tests.support.texts import strings
from tests.support.vocabularies import vocabulary_of


def read(header, folder):
    folder.mkdir(exist_ok=True)
    config = {"vocab_size": len(header.metadata["tokenizer.ggml.tokens"])}
    write_tokenizer(folder / "x.gguf", header, folder, config | {"max_position_embeddings": 64})
    return AutoTokenizer.from_pretrained(folder)


def assert_same(original, made):
    for text in strings():
        ids = original.encode(text).ids
        assert made(text)["input_ids"] == ids, text
        if "<" not in text:  # no names of special tokens, which are left out
            assert made.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_byte_level_tokenizers_cut_as_before(row, text, tmp_path):
    original = byte_level(text[:20_000], row.steps, row.ignore_merges, size=600)
    made = read(header_of(vocabulary_of(original, tmp_path)), tmp_path / "made")
    assert_same(original, made)


@pytest.mark.parametrize("prefix_space", [True, False])
def test_sentencepieces_merges_follow_from_its_scores(prefix_space, text, tmp_path):
    original = sentencepiece_like(text[:20_000], tmp_path, prefix_space)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = read(header_of(vocabulary_of(original, tmp_path, **named)), tmp_path / "made")
    assert_same(original, made)
    assert made("a")["input_ids"][0] == 1  # BOS


def test_templates_and_ends_of_text_are_kept(text, tmp_path):
    vocabulary = vocabulary_of(byte_level(text[:5000], ROWS[0].steps, False), tmp_path)
    vocabulary.templates = {"default": "{{ messages }}\r\n"}
    vocabulary.special_ids = {"bos": 0, "eos": 0, "eot": 3}
    header = header_of(vocabulary)
    made = read(header, tmp_path / "made")
    assert made.chat_template == "{{ messages }}\r\n"
    vocabulary.templates |= {"tool_use": "{{ tools }}"}
    both = read(header_of(vocabulary), tmp_path / "both")
    assert both.chat_template == vocabulary.templates
    assert (made.bos_token_id, made.eos_token_id) == (0, 0)
    assert '"eos_token_id": [' in (tmp_path / "made" / "generation_config.json").read_text()


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("model", "bert", "tokenizer of the kind bert; give --tokenizer FOLDER"),
        ("model", "llama", "no tokenizer.ggml.scores; give --tokenizer"),
        ("pre", "unheard-of", "pre-tokenizer unheard-of, which is not known here"),
        ("tokens", ["a", "a"], "is not read here"),
        ("tokens", ["a" * 5000], "has a token of 5,000 characters"),
        ("tokens", 3, "no list tokenizer.ggml.tokens"),
        ("merges", ["a"], "is not read here"),
        ("token_type", np.full(3, 1, np.int32), "token_type would be another"),
        ("bos_token_id", 10**6, "bos_token_id = 1000000, which is none of its"),
    ],
)
def test_what_is_not_understood_is_refused(text, tmp_path, key, value, match):
    header = header_of(vocabulary_of(byte_level(text[:5000], ROWS[0].steps, False), tmp_path))
    header.metadata[f"tokenizer.ggml.{key}"] = value
    size = len(value) if isinstance(value, list) else 512
    config = {"vocab_size": size, "max_position_embeddings": 64}
    with pytest.raises(ModelError, match=match):
        write_tokenizer(tmp_path / "x.gguf", header, tmp_path, config)


def test_unigram_is_refused(text, tmp_path):
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    original = unigram_like(text[:20_000], tmp_path)
    header = header_of(vocabulary_of(original, tmp_path, **named))
    with pytest.raises(ModelError, match="tokenizer of the kind t5"):
        read(header, tmp_path / "made")
