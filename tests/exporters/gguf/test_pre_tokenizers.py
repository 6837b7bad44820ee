"""Every pre-tokenizer of the table cuts text in llama.cpp as its steps do in Hugging Face."""

import unicodedata

import pytest
from tokenizers import Tokenizer, models

from exporters.gguf.vocabulary.pre_tokenizer_table import CHARACTER_NAMES, KNOWN_NAMES, ROWS
from exporters.gguf.vocabulary.table import Vocabulary
from lrqat.errors import ExportRefusedError, ModelError
from tests.support.small_tokenizers import byte_level, pre_tokenizer
from tests.support.texts import strings
from tests.support.vocabularies import differing, opened, vocabulary_of

TEXTS = [text for text in strings() if "<|endoftext|>" not in text]


def _beyond_ascii(categories):
    return lambda text: any(c > "\x7f" and unicodedata.category(c) in categories for c in text)


# Where the two runtimes differ, and what a text must hold for it; every other text is cut alike.
#   tekken, gpt-4o: llama.cpp's expression writes "a letter that is not a-z" for an upper-case one,
#     so letters beyond ASCII are of both cases, and combining marks of none.
#   deepseek-*: in its third expression white space beyond ASCII is no longer itself, and falls out
#     of the range U+0800..U+4E00 that Hugging Face's expression finds it in.
#   falcon: `tokenizers` has an older table of punctuation than llama.cpp.
EXPLAINED = {
    "tekken": _beyond_ascii({"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me"}),
    "gpt-4o": _beyond_ascii({"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me"}),
    "deepseek-llm": _beyond_ascii({"Zs", "Zl", "Zp"}),
    "deepseek-coder": _beyond_ascii({"Zs", "Zl", "Zp"}),
    "falcon": _beyond_ascii({"Po", "Pd", "Ps", "Pe", "Pc"}),
}


@pytest.fixture(scope="module")
def uncut(text):
    """Merges learnt from uncut text, so that a token lies across every cut one could forget."""
    return byte_level([*TEXTS, text[:20_000]] * 2, (("bytes", False),), False, size=2500)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_cuts_are_the_same(row, uncut, text, tmp_path):
    tokenizer = Tokenizer.from_str(uncut.to_str())
    tokenizer.model.ignore_merges = row.ignore_merges
    tokenizer.pre_tokenizer = pre_tokenizer(row.steps)
    vocabulary = vocabulary_of(tokenizer, tmp_path)
    assert (vocabulary.pre, vocabulary.notes) == (row.name, [row.note] if row.note else [])
    with opened(vocabulary, tmp_path / "v.gguf") as llama:
        lines = text[:6000].splitlines(keepends=True)[::4]
        found = differing(llama, tokenizer, [*TEXTS, text[:6000], *lines])
        sample = llama.tokenize(text[:3000], False)
        assert b"".join(llama._piece(token) for token in sample).decode() == text[:3000]
    explained = EXPLAINED.get(row.name, lambda text: False)
    assert [each for each in found if not explained(each)] == []
    assert bool(row.note) == (row.name in EXPLAINED)


def test_the_known_names_are_llama_cpps(tmp_path):
    def opens(name):
        tokens = ["a", "b", "ab", "\u0120"]
        vocabulary = Vocabulary("gpt2", tokens, [1] * 4, name, ["a b"], special_ids={"eos": 0})
        try:
            opened(vocabulary, tmp_path / "v.gguf").close()
        except ModelError:
            return False
        return True

    assert all(opens(name) for name in [*KNOWN_NAMES, *CHARACTER_NAMES])
    assert not opens("no-such-name")
    names = [name for row in ROWS for name in row.names]
    assert len(set(names)) == len(names)


def test_ignore_merges_makes_no_difference_where_merges_make_all(uncut, tmp_path):
    by_name = {row.name: row for row in ROWS}
    tokenizer = Tokenizer.from_str(uncut.to_str())
    tokenizer.pre_tokenizer = pre_tokenizer(by_name["gpt-4o"].steps)
    tokenizer.model.ignore_merges = True
    vocabulary = vocabulary_of(tokenizer, tmp_path)
    assert vocabulary.pre == "gpt-4o"
    ascii_texts = [text for text in TEXTS if text.isascii()]
    with opened(vocabulary, tmp_path / "v.gguf") as llama:
        assert not differing(llama, tokenizer, ascii_texts)
    vocab = {**tokenizer.get_vocab(), "unreachable": 2500}
    merges = [tuple(each.split(" ")) for each in vocabulary.merges]
    tokenizer.model = models.BPE(vocab, merges, ignore_merges=True)
    with pytest.raises(ExportRefusedError, match="ignore_merges True"):
        vocabulary_of(tokenizer, tmp_path)


def test_a_name_can_be_given_and_is_checked(uncut, tmp_path):
    tokenizer = Tokenizer.from_str(uncut.to_str())
    tokenizer.pre_tokenizer = pre_tokenizer((("split", r"\p{L}+"), ("bytes", False)))
    with pytest.raises(ExportRefusedError, match="--pre NAME"):
        vocabulary_of(tokenizer, tmp_path)
    named = vocabulary_of(tokenizer, tmp_path, pre="tiny_aya")
    assert named.pre == "tiny_aya"
    assert "your word" in named.notes[0]
    with pytest.raises(ExportRefusedError, match=r"did you mean qwen2"):
        vocabulary_of(tokenizer, tmp_path, pre="qwen-2")
    tokenizer.pre_tokenizer = pre_tokenizer((("bytes", True),))
    assert vocabulary_of(tokenizer, tmp_path, pre="phi-2").pre == "phi-2"
    with pytest.raises(ExportRefusedError, match="as gpt-2 does"):
        vocabulary_of(tokenizer, tmp_path, pre="qwen2")
    with pytest.raises(ExportRefusedError, match="no byte-level"):
        vocabulary_of(tokenizer, tmp_path, pre="gemma4")


def test_spellings_of_the_same_expression(uncut, tmp_path):
    import json

    by_name = {row.name: row for row in ROWS}
    tokenizer = Tokenizer.from_str(uncut.to_str())
    tokenizer.pre_tokenizer = pre_tokenizer(by_name["qwen2"].steps)
    value = json.loads(tokenizer.to_str())
    split = value["pre_tokenizer"]["pretokenizers"][0]
    split["pattern"]["Regex"] = split["pattern"]["Regex"].replace(r"\r", "\r").replace(r"\n", "\n")
    split["behavior"], split["invert"] = "Removed", True
    assert vocabulary_of(Tokenizer.from_str(json.dumps(value)), tmp_path).pre == "qwen2"
    split["behavior"], split["invert"] = "Removed", False
    with pytest.raises(ExportRefusedError, match="no pre-tokenizer"):
        vocabulary_of(Tokenizer.from_str(json.dumps(value)), tmp_path)
