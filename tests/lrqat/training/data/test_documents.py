import json

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from lrqat.data import Chat, documents, pack, split_held_out
from lrqat.errors import DataError
from lrqat.evaluation.text import EvaluationText, encode, window_bos
from lrqat.models import hub
from tests.support.small_tokenizers import byte_level

ROWS = ["first document\nwith two lines", "a second", "and a third one"] * 20


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return hub.load_tokenizer(tiny_model)


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.fixture
def chatty(tmp_path):
    """A tokenizer with BOS, special tokens and a template of them, like those of chat models."""
    made = byte_level("user assistant red cat blue dog", [("bytes", True)], False, size=300)
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    return tokenizer


CHAT = [{"role": "user", "content": "red cat"}, {"role": "assistant", "content": "blue dog"}]
SHAREGPT = [{"from": "human", "value": "red cat"}, {"from": "gpt", "value": "blue dog"}]
CHAT_ROWS = {
    "messages": {"messages": CHAT},
    "conversations": {"conversations": CHAT},
    "sharegpt": {"conversations": SHAREGPT, "id": 3},
    "sharegpt in messages": {"messages": SHAREGPT},
    "prompt and completion": {"prompt": "red cat", "completion": "blue dog"},
    "lists": {"prompt": CHAT[:1], "completion": CHAT[1:]},
    "with its text": {"text": "<|im_start|>user", "messages": CHAT},
    "as JSON": {"messages": json.dumps(CHAT)},
    "instruction": {"instruction": "red cat", "input": "", "output": "blue dog", "text": "### red"},
    "no input": {"instruction": "red cat", "input": None, "output": "blue dog"},
}


@pytest.mark.parametrize("row", CHAT_ROWS.values(), ids=CHAT_ROWS)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_chat_is_trained_on_as_the_tokens_of_its_template(chatty, tmp_path, row, suffix):
    source = str(write(tmp_path / f"chats{suffix}", [row] * 8))
    right = chatty.apply_chat_template(CHAT, tokenize=True, return_dict=True)["input_ids"]
    assert right.count(chatty.convert_tokens_to_ids("<|im_start|>")) == 2
    assert right.count(chatty.bos_token_id) == 1
    blocks = pack(documents(source, chatty), chatty, length=len(right), needed_tokens=0)
    assert blocks.tokens.tolist() == [right] * 8


def test_what_an_instruction_is_about_follows_it(chatty, tmp_path):
    row = {"instruction": "red cat", "input": "user red", "output": "blue dog"}
    [found] = documents(str(write(tmp_path / "alpaca.jsonl", [row])), chatty)
    chat = [{"role": "user", "content": "red cat\n\nuser red"}, CHAT[1]]
    right = chatty.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
    assert found.ids == right


def test_what_rows_are_read_as_is_said_once(chatty, tokenizer, tmp_path):
    chats = str(write(tmp_path / "chats.jsonl", [{"messages": CHAT, "text": "rendered"}] * 3))
    said = []
    list(documents(chats, chatty, say=said.append))
    described = "rows of `messages`, read as chats by the tokenizer's template; loss on all tokens"
    assert said == [f"{chats}: {described}"]
    assert list(documents(chats, tokenizer, say=said.append)) == ["rendered"] * 3  # no template
    assert said[1:] == [f"{chats}: rows of `text`, read as texts; loss on all tokens"]


def test_tools_go_to_the_template(chatty, tmp_path):
    chatty.chat_template = "{{ tools[0].name }}{{ 'x' if 'name' in messages[0] else 'y' }}"
    row = {"messages": CHAT, "tools": [{"name": "red"}]}
    source = str(write(tmp_path / "tools.parquet", [row, row | {"messages": [CHAT[0]]}]))
    assert [chatty.decode(chat.ids) for chat in documents(source, chatty)] == ["redy", "redy"]


def test_names_of_special_tokens_in_a_row_of_text_are_text(chatty, tmp_path):
    source = str(write(tmp_path / "text.jsonl", [{"text": "a<|im_end|>b"}]))
    length = len(chatty("a<|im_end|>b", split_special_tokens=True).input_ids) + 1  # and the end
    tokens = pack(documents(source, chatty), chatty, length=length, needed_tokens=0).tokens.ravel()
    assert tokens[[0, -1]].tolist() == [chatty.bos_token_id, chatty.eos_token_id]
    assert not set(tokens[1:-1].tolist()) & set(chatty.all_special_ids)
    assert chatty.decode(tokens[1:-1]) == "a<|im_end|>b"


def test_every_block_of_a_text_begins_with_bos(chatty, tmp_path):
    source = str(write(tmp_path / "text.jsonl", [{"text": "red cat blue dog " * 9}] * 3))
    tokens = pack(documents(source, chatty), chatty, length=16, needed_tokens=0).tokens
    assert len(tokens) > 5
    assert (tokens[:, 0] == chatty.bos_token_id).all()
    plain = tokens[tokens != chatty.bos_token_id]
    assert chatty.decode(plain).startswith("red cat blue dog red cat blue dog red cat blue dog ")


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"messages": "red"}, "`messages` of row 2 of .* is no chat"),
        ({"messages": ["red"]}, "`messages` of row 2 of .* is no chat"),
        ({"messages": CHAT[1:]}, "refuses row 2 of .*: roles must alternate"),
        ({"messages": [{}]}, "refuses row 2"),
        ({"text": "red"}, "row 2 of .* has `text` where the rows before it have `messages`"),
        ({"body": "red"}, "row 2 of .* has the columns body; `text`"),
        ({"instruction": "red", "response": "dog"}, "columns instruction, response; `text`"),
        ({}, "row 2"),
    ],
)
def test_a_row_that_is_no_chat_is_named(chatty, tmp_path, row, match):
    chatty.chat_template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}"
        "{% endif %}{{ messages[0].content + '' }}"
    )
    source = str(write(tmp_path / "chats.jsonl", [{"messages": CHAT}, row]))
    with pytest.raises(DataError, match=match):
        list(documents(source, chatty))


def test_a_chat_needs_a_template(tokenizer, tmp_path):
    source = str(write(tmp_path / "chats.jsonl", [{"messages": CHAT}]))
    with pytest.raises(DataError, match="no chat template"):
        list(documents(source, tokenizer))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_become_documents_and_blank_ones_are_passed_over(tokenizer, tmp_path, suffix):
    rows = [{"text": row, "id": 1} for row in [" \n", None, *ROWS, None, ""]]
    source = str(write(tmp_path / f"rows{suffix}", rows))
    assert list(documents(source, tokenizer)) == ROWS


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"text": None}], "empty"),
        ([{"text": 3}], "`text` of row 1 of .* is 3"),
        ([{"text": ["a", "b"]}], "`text` of row 1"),
    ],
)
def test_rows_without_text_are_refused(tokenizer, tmp_path, rows, match):
    with pytest.raises(DataError, match=match):
        list(documents(str(write(tmp_path / "rows.jsonl", rows)), tokenizer))


def test_blocks_are_the_documents_end_to_end(tokenizer):
    blocks = pack(iter(ROWS), tokenizer, length=16, needed_tokens=10_000)
    expected = [i for row in ROWS for i in [*tokenizer(row)["input_ids"], tokenizer.eos_token_id]]
    assert len(blocks) == len(expected) // 16
    assert np.array_equal(blocks.tokens.ravel(), expected[: len(blocks) * 16])
    assert blocks[1]["input_ids"].tolist() == expected[16:32]


def test_a_long_document_loses_no_token_boundary_at_line_ends(tokenizer, text):
    blocks = pack(iter([text]), tokenizer, length=64, needed_tokens=10_000)
    assert (
        tokenizer.decode(blocks.tokens[:20].ravel())
        == text[: len(tokenizer.decode(blocks.tokens[:20].ravel()))]
    )


WORDS = st.text("ab \n", min_size=1, max_size=400).filter(str.strip)


@given(st.lists(WORDS, min_size=1, max_size=30))
def test_held_out_is_at_most_a_tenth_of_any_text_and_not_trained_on(texts):
    characters = sum(len(text.strip()) for text in texts)
    try:
        held_out, rest = split_held_out(iter(texts))
    except DataError:
        assert characters < 10
        return
    assert held_out.strip()
    # Blank characters around a text count nowhere, and a text may begin within the last tenth.
    assert len("".join(held_out.split())) <= characters / 10 + len(texts)
    assert "".join([held_out, *rest]).replace("\n", "") == "".join(texts).replace("\n", "")


@pytest.mark.parametrize(("rows", "size"), [(400, 100), (120, 450), (8, 2000), (1, 40_000)])
def test_a_tenth_of_a_small_text_is_held_out(rows, size):
    line = "some words of a line" * 2 + "\n"
    texts = [line * (size // len(line)) for _ in range(rows)]
    held_out, rest = split_held_out(iter(texts))
    assert 0.04 < len(held_out) / sum(map(len, texts)) < 0.11
    assert held_out.endswith("\n")
    assert len(list(rest)) >= rows * 0.9


def test_of_a_long_text_no_more_is_read_ahead_than_a_tenth_needs():
    seen = []
    endless = (seen.append(i) or "word " * 200 for i in range(10**9))
    held_out, rest = split_held_out(endless)
    assert 199_000 < len(held_out) <= 200_200
    assert len(seen) == 2003
    assert next(rest) == "word " * 200


def test_whole_chats_are_held_out():
    chats = [Chat([i] * 30) for i in range(25)]
    held_out, rest = split_held_out(iter(chats))
    assert held_out == Chat(chats[0].ids + chats[1].ids)
    assert list(rest) == chats[2:]
    with pytest.raises(DataError, match="too short to hold a tenth of its 9 documents out"):
        split_held_out(iter(chats[:9]))
    with pytest.raises(DataError, match="is empty"):
        split_held_out(iter([]))


def test_reading_stops_when_the_run_has_enough(tokenizer, monkeypatch):
    monkeypatch.setattr("lrqat.training.data.documents.MOST_TOKENS", 100)
    seen = []
    endless = (seen.append(i) or "some more words" for i in range(10**9))
    blocks = pack(endless, tokenizer, length=10, needed_tokens=500)
    assert len(blocks) >= 50
    assert len(seen) < 500


def test_evaluation_text_is_read_as_llama_perplexity_reads_it(tmp_path, tokenizer):
    path = tmp_path / "t.txt"
    path.write_text("def f():\n    pass\n\n", encoding="utf-8")
    text = EvaluationText.read(path)
    assert text.text == "def f():\n    pass\n"
    assert encode(tokenizer, text.text) == tokenizer(text.text)["input_ids"]
    assert window_bos(tokenizer) is None


def test_names_of_special_tokens_in_a_text_are_text(tokenizer):
    ids = encode(tokenizer, "a <|endoftext|> b")
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "a <|endoftext|> b"
