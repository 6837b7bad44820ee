"""Rows of training data, and chat templates, that nobody vouches for."""

import gzip
import io
import json
import os

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrqat.errors import DataError
from lrqat.models import hub
from lrqat.training.data.documents import documents
from lrqat.training.data.loss_on import LOSS_ON
from lrqat.training.data.template_process import TemplateError, TemplateProcess
from tests.fuzz.harness import altered_bytes, altered_json, fuzz, outcome

ANY = st.data()
CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good morning"}]
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    made = hub.load_tokenizer(tiny_model)
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


CORPUS = {
    "a.jsonl": b'{"text": "one"}\n{"text": "two", "more": [1, null]}\n',
    "b.jsonl": json.dumps({"messages": CHAT, "tools": [{"name": "f"}]}).encode() + b"\n",
    "c.json": json.dumps([{"prompt": "a", "completion": "b"}]).encode(),
    "d.txt": "Text, and more text: äöü \U0001f600\n".encode(),
    "e.csv": b'text,n\n"a, b",1\nc,2\n',
    "f.jsonl.gz": gzip.compress(b'{"text": "one"}\n', mtime=0),
    "g.txt.zst": pyarrow.compress(b"Text", codec="zstd", asbytes=True),
    "h.tsv": b"text\tn\na\t1\n",
}


@fuzz(40)
@given(data=ANY)
def test_bytes_of_rows(folder, tokenizer, data):
    name = data.draw(st.sampled_from(sorted(CORPUS)))
    (folder / name).write_bytes(data.draw(altered_bytes([CORPUS[name]])))
    outcome(lambda: list(documents(str(folder / name), tokenizer)))


@pytest.fixture(scope="module")
def tables():
    """Rows as Parquet and as Arrow, by the suffix of their file."""
    table = pyarrow.table({"text": ["one", "two"], "messages": [CHAT, None]})
    parquet, arrow = io.BytesIO(), io.BytesIO()
    pyarrow.parquet.write_table(table, parquet)
    with pyarrow.ipc.new_stream(arrow, table.schema) as stream:
        stream.write_table(table)
    return {".parquet": parquet.getvalue(), ".arrow": arrow.getvalue()}


@fuzz(10)
@given(data=ANY)
def test_tables_of_rows(folder, tokenizer, tables, data):
    suffix = data.draw(st.sampled_from(sorted(tables)))
    path = folder / f"table{suffix}"
    path.write_bytes(data.draw(altered_bytes([tables[suffix]])))
    outcome(lambda: list(documents(str(path), tokenizer)))


ROWS = [{"text": "one"}, {"messages": CHAT, "tools": [{"name": "f"}]}, {"conversations": CHAT}]


@fuzz(15)
@given(data=ANY)
def test_values_of_rows(folder, tokenizer, data):
    rows = [data.draw(altered_json(ROWS)) for _ in range(2)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source, loss_on = str(folder / "rows.jsonl"), data.draw(st.sampled_from(sorted(LOSS_ON)))
    outcome(lambda: list(documents(source, tokenizer, loss_on=loss_on)))


@fuzz(5)
@given(data=ANY)
def test_templates(folder, tiny_model, data):
    made = hub.load_tokenizer(tiny_model)
    text = data.draw(altered_bytes([TEMPLATE.encode()])).decode("utf-8", "replace")
    made.chat_template = text
    (folder / "chat.jsonl").write_text(json.dumps({"messages": CHAT}))
    source = str(folder / "chat.jsonl")
    outcome(lambda: list(documents(source, made)))
    outcome(lambda: list(documents(source, made, loss_on="assistant")))


LOOPS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "repeats a text": "{{ 'a' * 10**10 }}",
    "builds a list": "{% set x = [0] * 10**10 %}",
    "raises to powers": "{{ 9 ** (9 ** 9) }}",
    "writes too much": "{{ 'a' * 10**7 }}",
    "calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "has no syntax": "{% for %}",
    "lacks a name": "{{ nothing.at.all }}",
    "refuses": "{{ raise_exception('only users') }}",
    "looks around": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_template_that_is_not_one_is_refused(name, tiny_model, tmp_path):
    made = hub.load_tokenizer(tiny_model)
    made.chat_template = LOOPS[name]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": CHAT}))
    with pytest.raises(DataError, match="the chat template refuses row 1 of"):
        list(documents(str(tmp_path / "chat.jsonl"), made))


def test_what_a_template_writes_is_what_transformers_writes(tokenizer):
    process = TemplateProcess(tokenizer)
    expected = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert process.render(CHAT, None) == expected
    process.close()


def test_many_chats_take_one_process(tokenizer, monkeypatch):
    process = TemplateProcess(tokenizer)
    monkeypatch.delattr(os, "fork")
    for _ in range(300):
        process.render(CHAT, None)
    process.close()


def test_after_a_refusal_the_next_chat_is_rendered(tokenizer):
    process = TemplateProcess(tokenizer)
    with pytest.raises(TemplateError):
        process.render([{"role": "user"}], None)
    assert "Hello" in process.render(CHAT, None)
    process.close()
