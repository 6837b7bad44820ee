"""Every form of file that people bring, read as what it is or refused with what to do."""

import bz2
import gzip
import io
import json
import sys

import datasets
import pyarrow
import pytest

from lrqat.errors import DataError
from lrqat.evaluation.text import EvaluationText
from lrqat.training.data.rows import check_source, read_rows

ROWS = [{"text": "one\ntwo"}, {"text": "NA"}, {"text": "drei, \u201evier\u201c"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = 'text\n"one\ntwo"\nNA\n"drei, \u201evier\u201c"\n'.encode()


def zstd(data):
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def named(value):
    """Ids of tests: contents may be long."""
    return "bytes" if isinstance(value, bytes) else None


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES),
        ("rows.JSONL", LINES),
        ("rows.ndjson", LINES),
        ("rows.json", LINES),
        ("list.json", json.dumps(ROWS, indent=1).encode()),
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES),
        ("crlf.jsonl", b"\r\n" + LINES.replace(b"\n", b"\r\n")),
        ("rows.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("rows.Json.BZ2", bz2.compress(LINES)),
        ("rows.csv", CSV),
        ("bom.CSV", b"\xef\xbb\xbf" + CSV),
        ("rows.csv.gz", gzip.compress(CSV, mtime=0)),
        ("rows.csv.zst", zstd(CSV)),
        ("rows.jsonl.zst", zstd(LINES)),
        ("two-frames.jsonl.zst", zstd(LINES[:20]) + zstd(LINES[20:])),
        ("rows.tsv", CSV),
    ],
    ids=named,
)
def test_the_same_rows_are_read_from_every_form(tmp_path, name, content):
    source = write(tmp_path / name, content)
    check_source(source)
    assert list(read_rows(source)) == ROWS


def test_numbers_in_a_table_of_texts_are_text(tmp_path):
    content = b"instruction,output\nwhat is 3+4?,007\nand 1/2?,0.50\n"
    found = list(read_rows(write(tmp_path / "a.csv", content)))
    assert [row["output"] for row in found] == ["007", "0.50"]


def test_arrow_files_are_read(tmp_path):
    made = datasets.Dataset.from_list(ROWS)
    made.to_parquet(tmp_path / "rows.PARQUET")
    made.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"test": made.take(1), "train": made}).save_to_disk(tmp_path / "splits")
    packed = gzip.compress((tmp_path / "rows.PARQUET").read_bytes())
    write(tmp_path / "packed.parquet.gz", packed)
    for name in (
        "rows.PARQUET",
        "packed.parquet.gz",
        "saved",
        "saved/data-00000-of-00001.arrow",
        "splits",
    ):
        check_source(str(tmp_path / name))
        assert list(read_rows(str(tmp_path / name))) == ROWS


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"\n" + LINES, ROWS),
        (json.dumps(ROWS, indent=1).encode(), ROWS),
        (b"[1] is a note\nof a text", [{"text": "[1] is a note\nof a text"}]),
        (b"{ braces }\r\nof C", [{"text": "{ braces }\nof C"}]),
    ],
    ids=named,
)
def test_standard_input_is_told_by_what_comes(monkeypatch, content, rows):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    check_source("-")
    assert list(read_rows("-")) == rows
    assert sys.stdin.read() == ""  # it was left open


def test_standard_input_that_is_packed_is_refused(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(LINES))))
    with pytest.raises(DataError, match=r"standard input is not UTF-8 .* unpack it first"):
        list(read_rows("-"))


def test_arrow_adds_no_keys_to_messages(tmp_path):
    chats = [[{"role": "user", "content": "a"}], [{"role": "tool", "content": "b", "name": "c"}]]
    datasets.Dataset.from_list([{"messages": c} for c in chats]).to_parquet(tmp_path / "c.parquet")
    assert [row["messages"] for row in read_rows(str(tmp_path / "c.parquet"))] == chats


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.py", "wiki.train.raw", "none"])
def test_any_other_file_is_one_text_with_its_lf_line_ends(tmp_path, name):
    source = write(tmp_path / name, "\ufeff\r\n{a}: b\r\n\r\nc\n".encode())
    assert list(read_rows(source)) == [{"text": "\n{a}: b\n\nc\n"}]
    packed = write(tmp_path / f"{name}.gz", gzip.compress(b"a\nb", mtime=0))
    assert list(read_rows(packed)) == [{"text": "a\nb"}]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n\n ", "empty"),
        ("a.txt", b"\xff\xfea\x00", "not UTF-8"),
        ("a.bin", b"a\x00b", "NUL"),
        ("a.txt", LINES, r"rename it to \.jsonl"),
        ("none", b'\n{"text": "only"}', r"rename it to \.jsonl"),
        ("a.jsonl", b'{"text": "x"}\nnot json\n', "cannot read line 2 of .*a.jsonl as JSON"),
        ("a.jsonl", b'["x"]\n', "line 1 of .* is a list"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, "cannot read line 1"),
        ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "cannot read line 1"),
        ("a.jsonl", b'{"text": "\xff"}', "not UTF-8"),
        ("a.json", b'["x"]', "entry 1 of .* is a str"),
        ("a.json", b"[1, ", "as JSON"),
        ("a.csv", b"", "cannot read"),
        ("a.parquet", b"PAR1 nonsense", "cannot read"),
        ("a.arrow", b"nonsense", "cannot read"),
        ("a.txt.gz", b"\x1f\x8b nonsense", "cannot be unpacked"),
        ("a.txt.gz", gzip.compress(b"some text" * 99, mtime=0)[:-9], "cannot be unpacked"),
        ("a.jsonl.zst", b"x", "cannot be unpacked"),
        ("a.csv.zst", zstd(CSV)[:-5], "cannot be unpacked"),
        ("a.parquet.gz", b"x", "cannot be unpacked"),
        ("a.txt.zip", b"x", "unpack it"),
    ],
    ids=named,
)
def test_bad_files_are_named(tmp_path, name, content, match):
    with pytest.raises(DataError, match=match):
        list(read_rows(write(tmp_path / name, content)))


def test_a_file_of_text_in_a_folder_is_a_document_of_its_own(tmp_path):
    write(tmp_path / "b.txt", b"three\nfour")
    write(tmp_path / "a.txt", b"one\ntwo")
    write(tmp_path / ".hidden" / "c.txt", b"hidden")
    write(tmp_path / "README.md", b"about")
    assert [row["text"] for row in read_rows(str(tmp_path))] == ["one\ntwo", "three\nfour"]


@pytest.mark.parametrize("name", ["train.jsonl", "data/train-00000-of-00001.JSONL", "train/a.json"])
def test_the_training_files_of_a_folder_are_read_alone(tmp_path, name):
    write(tmp_path / name, LINES)
    write(tmp_path / "valid.jsonl", b'{"text": "not this"}')
    write(tmp_path / "requirements.txt", b"nor this")
    write(tmp_path / "constraining.txt", b"nor that")
    check_source(str(tmp_path))
    assert list(read_rows(str(tmp_path))) == ROWS


def test_folders_without_text_or_of_several_forms_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no text"):
        check_source(str(tmp_path))
    write(tmp_path / "a.jsonl", LINES)
    write(tmp_path / "b.txt", b"text")
    with pytest.raises(DataError, match=r"several forms \(\.jsonl, \.txt\)"):
        check_source(str(tmp_path))


@pytest.mark.parametrize(
    "source", ["no.jsonl", "no.TXT", "./no", "/no/such", "a/b/c", "~/x", "", " "]
)
def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(source):
    for read in (check_source, lambda name: list(read_rows(name))):
        with pytest.raises(DataError, match="no file at"):
            read(source)


def test_a_dataset_that_cannot_be_had_is_named():
    for read in (check_source, lambda name: next(read_rows(name))):
        with pytest.raises(DataError, match="no-such-owner/no-such-dataset"):
            read("no-such-owner/no-such-dataset")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.jsonl", LINES, "file of rows"),
        ("a.CSV", CSV, "file of rows"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0), "file of rows"),
        ("a.txt", LINES, r"rename it to \.jsonl"),
        ("a.txt.gz", gzip.compress(b"text", mtime=0), "not UTF-8"),
    ],
    ids=named,
)
def test_perplexity_is_measured_on_no_raw_rows(tmp_path, name, content, match):
    with pytest.raises(DataError, match=match):
        EvaluationText.read(write(tmp_path / name, content))
