import json

import datasets
import numpy as np
import pytest

from lrqat.errors import DataError
from lrqat.evaluation.text import EvaluationText, encode, window_bos
from lrqat.models import hub
from lrqat.training.data.documents import documents, pack, split_held_out

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


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_become_documents(tokenizer, tmp_path, suffix):
    path = write(tmp_path / f"rows{suffix}", [{"text": row, "id": 1} for row in ROWS])
    assert list(documents(str(path), tokenizer)) == ROWS


def test_chats_go_through_the_template(tokenizer, tmp_path, tiny_model):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path = write(tmp_path / "chats.jsonl", [{"messages": chat}])
    with pytest.raises(DataError, match="no chat template"):
        list(documents(str(path), tokenizer))
    templated = hub.load_tokenizer(tiny_model)
    templated.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert list(documents(str(path), templated)) == ["<user>hi<assistant>hello"]


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


def test_held_out_text_is_not_trained_on(tokenizer, text):
    held_out, rest = split_held_out(iter([text]))
    assert held_out.endswith("\n")
    assert held_out + next(rest) == text
    held_out, rest = split_held_out(iter(ROWS))
    rest = list(rest)
    assert rest
    assert held_out.split("\n")[0] == "first document"
    assert len(held_out.replace("\n", "")) + sum(map(len, rest)) >= sum(map(len, ROWS)) - len(ROWS)


def test_reading_stops_when_the_run_has_enough(tokenizer, monkeypatch):
    monkeypatch.setattr("lrqat.training.data.documents._MOST_TOKENS", 100)
    seen = []
    endless = (seen.append(i) or "some more words" for i in range(10**9))
    blocks = pack(endless, tokenizer, length=10, needed_tokens=500)
    assert len(blocks) >= 50
    assert len(seen) < 500


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n\n ", "empty"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", b'{"body": "x"}\n', "columns body"),
        ("a.jsonl", b"not json\n", "cannot read"),
        ("a.parquet", b"PAR1 nonsense", "cannot read"),
    ],
)
def test_bad_files_are_named(tokenizer, tmp_path, name, content, match):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=match):
        list(documents(str(path), tokenizer))


def test_a_dataset_that_cannot_be_had_is_named(tokenizer):
    with pytest.raises(DataError, match="no-such-owner/no-such-dataset"):
        next(documents("no-such-owner/no-such-dataset", tokenizer))


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
