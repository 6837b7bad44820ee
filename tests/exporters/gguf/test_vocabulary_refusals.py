"""Tokenizers that llama.cpp does not reproduce are refused; malformed ones never crash."""

import json

import pytest
from tokenizers import pre_tokenizers
from tokenizers import processors as post

from exporters.gguf.vocabulary import TokenizerFiles, load_vocabulary
from exporters.gguf.vocabulary.pre_tokenizer_table import QWEN2
from lrqat.errors import ExportRefusedError
from tests.support.small_tokenizers import SIZE, byte_level, sentencepiece_like, unigram_like


def changed(tokenizer, **entries):
    """tokenizer.json of `tokenizer` with top-level entries replaced."""
    return {**json.loads(tokenizer.to_str()), **entries}


def load_json(folder, value, size=SIZE, pre=None):
    (folder / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    files = TokenizerFiles.open(folder, {"bos_token_id": 1, "eos_token_id": [2, 3]})
    return load_vocabulary(files, size, pre)


def test_what_llama_cpp_cannot_do_is_refused(text, tmp_path):
    tokenizer = byte_level(text, (("bytes", True),), False)
    spaced = pre_tokenizers.ByteLevel(add_prefix_space=True)
    for entries, said in (
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"pre_tokenizer": json.loads(spaced.__getstate__())}, "--pre"),
        ({"post_processor": {"type": "BertProcessing"}}, "BertProcessing"),
        ({"model": {"type": "Unigram", "vocab": [["a", "x"]]}}, "Unigram"),
        ({"model": {"type": "Unigram", "vocab": {"a": 0}}, "pre_tokenizer": None}, "Unigram"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}, "pre_tokenizer": None}, "prepares"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}, "pre_tokenizer": None}, "WordPiece"),
        ({"added_tokens": [{"id": "x"}]}, "added token"),
        ({"added_tokens": [{"id": 5, "content": "Ġ"}]}, "several ids"),
        ({"added_tokens": [{"id": 9999, "content": "far"}]}, "outside"),
    ):
        with pytest.raises(ExportRefusedError, match=said):
            load_json(tmp_path, changed(tokenizer, **entries))
    with pytest.raises(ExportRefusedError, match=r"no tokenizer\.json"):
        TokenizerFiles.open(tmp_path / "nowhere", {})
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(ExportRefusedError, match="cannot be read"):
        TokenizerFiles.open(tmp_path, {})


def test_nfc_is_noted(text, tmp_path):
    value = changed(byte_level(text, (("bytes", True),), False), normalizer={"type": "NFC"})
    assert "NFC" in load_json(tmp_path, value).notes[0]


def test_what_the_bpe_of_llama_cpp_lacks_is_refused(text, tmp_path):
    value = changed(byte_level(text, (("bytes", True),), False))
    for key, setting in (
        ("dropout", 0.1),
        ("continuing_subword_prefix", "##"),
        ("end_of_word_suffix", "</w>"),
        ("byte_fallback", True),
        ("merges", [*value["model"]["merges"], value["model"]["merges"][0]]),
    ):
        broken = {**value, "model": {**value["model"], key: setting}}
        with pytest.raises(ExportRefusedError, match="twice" if key == "merges" else key):
            load_json(tmp_path, broken)
    characters = changed(sentencepiece_like(text, tmp_path))
    characters["model"]["ignore_merges"] = True
    with pytest.raises(ExportRefusedError, match="ignore_merges"):
        load_json(tmp_path, characters)
    with pytest.raises(ExportRefusedError, match="for byte-level"):
        load_json(tmp_path, characters, pre="gpt-2")


def test_chat_templates_that_are_no_text_are_refused(text, tmp_path):
    value = changed(byte_level(text, (("bytes", True),), False))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "\ud800"}))
    with pytest.raises(ExportRefusedError, match="of no valid Unicode"):
        load_json(tmp_path, value)
    for wrong in (5, {"default": "x"}, [{"name": 3}, "x", {"name": "../x", "template": "y"}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": wrong}))
        assert load_json(tmp_path, value).templates == {}
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ExportRefusedError, match="cannot be read"):
        load_json(tmp_path, value)


def test_merges_that_scores_cannot_say_are_refused(text, tmp_path):
    value = changed(sentencepiece_like(text, tmp_path))
    (tmp_path / "tokenizer.model").unlink()
    merges = value["model"]["merges"]
    assert load_json(tmp_path, value).scores
    value["model"]["merges"] = merges[:-1]
    with pytest.raises(ExportRefusedError, match="is not a merge"):
        load_json(tmp_path, value)
    twice = next(i for i in range(1, len(merges)) if "".join(merges[i]) == "".join(merges[i - 1]))
    value["model"]["merges"] = [*merges[:twice], *merges[twice + 1 :], merges[twice]]
    with pytest.raises(ExportRefusedError, match="stand together"):
        load_json(tmp_path, value)


def test_a_foreign_sentencepiece_model_is_refused(text, tmp_path):
    value = changed(sentencepiece_like(text, tmp_path))
    words = value["model"]["vocab"]
    one, two = [word for word, i in words.items() if i > 300][:2]
    words[one], words[two] = words[two], words[one]
    with pytest.raises(ExportRefusedError, match="disagree"):
        load_json(tmp_path, value)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ExportRefusedError, match="cannot be read"):
        load_json(tmp_path, value)


def nodes(value, path=()):
    """Paths of all nodes of a JSON value, long arrays and objects sampled."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in list(items)[:6]:
        if isinstance(each, dict | list):
            yield from nodes(each, (*path, key))
        else:
            yield (*path, key)


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("kind", ["bytes", "characters", "unigram"])
def test_malformed_tokenizers_are_refused_and_never_crash(kind, text, tmp_path):
    if kind == "bytes":
        tokenizer = byte_level(text, (("split", QWEN2), ("bytes", False)), False)
        tokenizer.post_processor = post.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    elif kind == "unigram":
        tokenizer = unigram_like(text[:80_000], tmp_path)
    else:
        tokenizer = sentencepiece_like(text, tmp_path)
        (tmp_path / "tokenizer.model").unlink()
    good = changed(tokenizer)
    refused = 0
    for path in list(nodes(good)):
        for new in (None, [], {}, "x", -1, True, [{}], {"type": "BPE"}, [1, 2], "\ud800"):
            try:
                load_json(tmp_path, replaced(good, path, new))
            except ExportRefusedError:
                refused += 1
    assert refused > 100
