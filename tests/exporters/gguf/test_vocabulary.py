"""Tokenizers in GGUF: llama.cpp gives the ids that Hugging Face gives."""

import json
import shutil
import unicodedata

import pytest
from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers import processors as post

from exporters import gguf
from exporters.gguf.vocabulary import TokenizerFiles, load_vocabulary
from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.verification import accept_tokenizer
from lrqat.errors import ExportRefusedError, RuntimeUnavailableError
from tests.support.paths import SHARED, shared_model
from tests.support.small_tokenizers import SIZE, byte_level, sentencepiece_like, unigram_like
from tests.support.texts import strings
from tests.support.vocabularies import differing, vocabulary_of
from tests.support.vocabularies import opened as opened_alone


def checkpoint_with(fused, folder, tokenizer, **settings):
    """A copy of the fused checkpoint `fused` with another tokenizer of the same size."""
    shutil.copytree(fused, folder, dirs_exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return Checkpoint.open(folder, verify=False)


def opened(checkpoint, folder, options=None):
    try:
        from lrqat.runtimes.llama_cpp.runtime import LlamaCpp

        path = folder / "model.gguf"
        gguf.write(gguf.plan(checkpoint, options), path, overwrite=True)
        return LlamaCpp.open(path)
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))


def assert_same_tokens(llama, tokenizer, texts):
    for each in texts:
        expected = tokenizer.encode(each, add_special_tokens=False).ids
        assert llama.tokenize(each, add_special=False) == expected, repr(each)


NAMES = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}
# Control tokens spelt out in a text are text in llama.cpp and tokens in Hugging Face.
PLAIN = [text for text in strings() if "<s>" not in text]


@pytest.mark.parametrize("with_model", [True, False], ids=["tokenizer.model", "merges"])
@pytest.mark.parametrize("prefix_space", [True, False])
def test_sentencepiece_gives_the_same_tokens(with_model, prefix_space, text, tmp_path):
    tokenizer = sentencepiece_like(text, tmp_path, prefix_space)
    if not with_model:
        (tmp_path / "tokenizer.model").unlink()
    vocabulary = vocabulary_of(tokenizer, tmp_path, **NAMES)
    assert (vocabulary.model, vocabulary.notes) == ("llama", [])
    with opened_alone(vocabulary, tmp_path / "v.gguf") as llama:
        assert (llama.add_bos, llama.bos, llama.eos) == (True, 1, 2)
        sample = text[:5000]
        assert not differing(llama, tokenizer, [*PLAIN, sample])
        assert llama.detokenize(llama.tokenize(sample, add_special=True)) == sample
        whole = ["<s> is one </s>", "a<s><unk></s>b"]
        assert not differing(llama, tokenizer, whole, parse_special=True)


def starts_with_space(text):
    return text.startswith(" ") or "<tool> " in text


def follows_added(text):
    return starts_with_space(text) or "<tool>" in text


@pytest.mark.parametrize(
    ("scheme", "differ"),
    [("always", starts_with_space), ("first", follows_added), ("never", lambda text: False)],
)
def test_metaspace(scheme, differ, text, tmp_path):
    """Where a space goes before a text that has one, and after added tokens, is in the notes."""
    tokenizer = sentencepiece_like(text, tmp_path)
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    vocabulary = vocabulary_of(tokenizer, tmp_path, **NAMES)
    texts = [*PLAIN, "a<tool>b", "<tool>x <tool><tool> y"]
    with opened_alone(vocabulary, tmp_path / "v.gguf") as llama:
        found = differing(llama, tokenizer, texts)
    assert [each for each in found if not differ(each)] == []
    assert len(vocabulary.notes) == {"always": 1, "first": 2, "never": 0}[scheme]
    assert bool(found) == bool(vocabulary.notes)
    # No token of this vocabulary lies across a space, so that cutting there changes nothing.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    with opened_alone(vocabulary_of(tokenizer, tmp_path, **NAMES), tmp_path / "v.gguf") as llama:
        assert differing(llama, tokenizer, texts) == found
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(ExportRefusedError, match="has one inside"):
        vocabulary_of(with_runs(tokenizer, [2], "\u2581"), tmp_path, **NAMES)


def with_runs(tokenizer, lengths, characters):
    """Runs of a character as tokens, their merges in the order that transformers gives them."""
    value = json.loads(tokenizer.to_str())
    vocab, merges = value["model"]["vocab"], value["model"]["merges"]
    for character in characters:
        vocab.setdefault(character, len(vocab))
        for n in lengths:
            vocab.setdefault(character * n, len(vocab))
    pairs = [
        (character * left, character * right)
        for left, right in sorted(((m, n - m) for n in lengths for m in range(1, n)), reverse=True)
        for character in characters
    ]
    made = {"".join(pair) for pair in pairs}
    value["model"]["merges"] = pairs + [m for m in merges if "".join(m) not in made]
    return Tokenizer.from_str(json.dumps(value))


def test_runs_of_a_character_may_be_interleaved(text, tmp_path):
    """As in the vocabularies of Llama 2 (spaces) and Gemma (line ends and tabs too)."""
    plain = sentencepiece_like(text, tmp_path, prefix_space=False)
    (tmp_path / "tokenizer.model").unlink()
    tokenizer = with_runs(plain, range(2, 9), "\u2581\n\t")
    vocabulary = vocabulary_of(tokenizer, tmp_path, **NAMES)
    runs = ["  " * n + "\n" * n + "x" + "\t" * n + " " for n in range(20)]
    with opened_alone(vocabulary, tmp_path / "v.gguf") as llama:
        assert vocabulary.model == "llama"
        assert not differing(llama, tokenizer, [*PLAIN, *runs, text[:5000]])


def test_merges_that_scores_cannot_say_go_by_rank(text, tmp_path):
    """A BPE that was not trained by sentencepiece: llama.cpp's other way, if nothing is in it."""
    trained = sentencepiece_like(text, tmp_path, prefix_space=False)
    (tmp_path / "tokenizer.model").unlink()
    value = json.loads(trained.to_str())
    value["model"]["merges"] = value["model"]["merges"][::2]
    tokenizer = Tokenizer.from_str(json.dumps(value))
    vocabulary = vocabulary_of(tokenizer, tmp_path, **NAMES)
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", "sarvam-moe")
    with opened_alone(vocabulary, tmp_path / "v.gguf") as llama:
        sample = text[:5000]
        assert not differing(llama, tokenizer, [*PLAIN, sample])
        assert llama.detokenize(llama.tokenize(sample, add_special=True)) == sample
    value["normalizer"]["normalizers"].insert(0, {"type": "Prepend", "prepend": "\u2581"})
    with pytest.raises(ExportRefusedError, match="is not a merge"):
        vocabulary_of(Tokenizer.from_str(json.dumps(value)), tmp_path, **NAMES)


def test_gemmas_steps_and_added_tokens_of_spaces(text, tmp_path):
    tokenizer = sentencepiece_like(text, tmp_path, prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.add_tokens([AddedToken("[\u2581x\u2581]", normalized=True, special=False)])
    vocabulary = vocabulary_of(tokenizer, tmp_path, **NAMES)
    assert vocabulary.tokens[-1] == "[ x ]"
    assert vocabulary.types[-1] == TokenType.USER_DEFINED
    assert "NFC" in vocabulary.notes[0]
    with opened_alone(vocabulary, tmp_path / "v.gguf") as llama:
        nfc = [unicodedata.normalize("NFC", each) for each in PLAIN]
        assert not differing(llama, tokenizer, [*nfc, "a[ x ]b [ x ][ x ]", "[x ]"])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    with pytest.raises(ExportRefusedError, match="normalized=False"):
        vocabulary_of(tokenizer, tmp_path, **NAMES)


@pytest.mark.parametrize(
    ("scheme", "differ"), [("always", starts_with_space), ("never", lambda text: False)]
)
def test_unigram(scheme, differ, text, tmp_path):
    tokenizer = unigram_like(text[:80_000], tmp_path, scheme)
    vocabulary = vocabulary_of(tokenizer, tmp_path, **NAMES)
    assert (vocabulary.model, vocabulary.special_ids["unk"]) == ("t5", 0)
    with opened_alone(vocabulary, tmp_path / "v.gguf") as llama:
        assert (llama.add_bos, llama.add_eos) == (False, False)
        found = differing(llama, tokenizer, [*PLAIN, text[:5000]])
    assert [each for each in found if not differ(each)] == []
    assert bool(found) == bool(vocabulary.notes)
    value = json.loads(tokenizer.to_str())
    value["model"]["byte_fallback"] = True
    with pytest.raises(ExportRefusedError, match="Unigram has none"):
        vocabulary_of(Tokenizer.from_str(json.dumps(value)), tmp_path, **NAMES)
    value["model"]["byte_fallback"] = False
    value["model"]["vocab"][300][1] += 1e-9
    rounded = vocabulary_of(Tokenizer.from_str(json.dumps(value)), tmp_path, **NAMES)
    assert "seven digits" in rounded.notes[-1]


@pytest.mark.parametrize(
    ("model", "source"),
    [
        (shared_model("stories260k").values[0], "tinystories-sample.txt"),
        (shared_model("pycode-8m").values[0], "pycode/valid.txt"),
    ],
    ids=["stories260k", "pycode-8m"],
)
def test_shared_models_give_the_same_tokens(model, source, tmp_path):
    if not model.is_dir():
        pytest.skip("no shared models")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    vocabulary = load_vocabulary(TokenizerFiles.open(model, config), config["vocab_size"])
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    whole = (SHARED / "data" / source).read_text(encoding="utf-8")[:200_000]
    # Hugging Face's Metaspace adds no second space before a text that starts with one: a note.
    texts = [each for each in PLAIN if not each.startswith(" ")]
    with opened_alone(vocabulary, tmp_path / "v.gguf") as llama:
        assert not differing(llama, tokenizer, [*texts, *whole.splitlines(), whole.lstrip()])
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
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("for tools")
    accept_tokenizer(folder)
    checkpoint = Checkpoint.open(folder)
    values = {entry.key: entry.value for entry in gguf.plan(checkpoint).metadata}
    assert values["tokenizer.chat_template"] == "from the file"
    assert values["tokenizer.chat_template.tools"] == "for tools"
    assert values["tokenizer.chat_templates"] == ["tools"]
    with opened(checkpoint, tmp_path) as llama:
        assert_same_tokens(llama, tokenizer, ["a<tool>b", "<tool><tool> x"])
        assert llama.tokenize("hi", add_special=True) == tokenizer.encode("hi").ids
        assert llama.tokenize("<|im_end|>", False, parse_special=True) == [end]


def test_further_ends_of_text(text, tmp_path):
    """llama.cpp stops at all of them: some it knows by their text, two more fit into the file."""
    tokenizer = byte_level(text, (("bytes", True),), False, size=SIZE - 6)
    tokenizer.add_special_tokens(["<|eom_id|>", "<stop>", "<halt>", "<quit>"])
    ends = [tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|eom_id|>", "<stop>", "<halt>")]
    config = tmp_path / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": ends[:3]}))
    vocabulary = vocabulary_of(tokenizer, tmp_path)
    assert vocabulary.special_ids == {"bos": 0, "eos": 0, "eom": ends[2]}
    assert vocabulary.notes == []
    with opened_alone(vocabulary, tmp_path / "v.gguf") as llama:
        stops = [llama._library.llama_vocab_is_eog(llama._vocab, token) for token in ends]
    assert stops == [True, True, True, False]
    config.write_text(json.dumps({"eos_token_id": ends}))
    assert "<halt>" in vocabulary_of(tokenizer, tmp_path).notes[0]


def test_what_added_tokens_do_otherwise_is_noted(text, tmp_path):
    tokenizer = byte_level(text, (("bytes", True),), False, size=SIZE - 6)
    tokenizer.add_tokens([AddedToken("<a>", lstrip=True), AddedToken("<b>", single_word=True)])
    tokenizer.add_tokens([AddedToken("<|end|>")])
    notes = vocabulary_of(tokenizer, tmp_path).notes
    assert [name in note for name, note in zip(("<a>", "<b>", "<|end|>"), notes, strict=True)]
    with opened_alone(vocabulary_of(tokenizer, tmp_path), tmp_path / "v.gguf") as llama:
        texts = ["x <a> y", "x<a>y", "x<b>y", "x <b> y", "a <|end|>"]
        assert differing(llama, tokenizer, texts) == ["x <a> y", "x<b>y", "a <|end|>"]


def test_bytes_without_a_token(text, tmp_path):
    """Left out by both; refused where Hugging Face puts the unknown token instead."""
    tokenizer = byte_level(text, (("bytes", True),), False)
    vocab = {t: i for t, i in tokenizer.get_vocab().items() if t not in ("\u0122", "@")}
    merges = [m for m in json.loads(tokenizer.to_str())["model"]["merges"] if "@" not in "".join(m)]
    tokenizer.model = models.BPE(vocab, [tuple(merge) for merge in merges])
    with opened_alone(vocabulary_of(tokenizer, tmp_path, SIZE), tmp_path / "v.gguf") as llama:
        assert not differing(llama, tokenizer, ["a@b", "\u00e9@", "@"])
    tokenizer.model = models.BPE(vocab, [tuple(m) for m in merges], unk_token="<|endoftext|>")
    with pytest.raises(ExportRefusedError, match="have no token"):
        vocabulary_of(tokenizer, tmp_path, SIZE)
