"""Several sources of text: what `--data` means, and how their blocks become one text."""

import json

import numpy as np
import pytest

from lrqat.checkpoint.manifest import sha256_of
from lrqat.cli import train
from lrqat.errors import DataError, UserError
from lrqat.training.data.blocks import TokenBlocks
from lrqat.training.data.mixture import counts_of, mix
from lrqat.training.data.sources import Source, parse_sources


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("owner/name:2024", [("owner/name:2024", None)]),  # a configuration
        (("a.jsonl",), [("a.jsonl", None)]),
        (("a.jsonl", "b.txt"), [("a.jsonl", None), ("b.txt", None)]),
        (("a.jsonl:0.6", "b.txt:.2"), [("a.jsonl", 0.75), ("b.txt", 0.25)]),
        (("owner/name:config:3", "-:1"), [("owner/name:config", 0.75), ("-", 0.25)]),
    ],
)
def test_sources_and_their_shares(data, expected):
    assert parse_sources(data) == tuple(
        Source(name, share if share is None else pytest.approx(share)) for name, share in expected
    )


def test_a_file_whose_name_ends_in_a_number_is_that_file(tmp_path):
    (tmp_path / "a:1").write_text("text")
    entries = (f"{tmp_path}/a:1:3", f"{tmp_path}/a:1")
    with pytest.raises(UserError, match="a:1 twice"):
        parse_sources(entries)
    assert parse_sources((entries[1], "b"))[0] == Source(entries[1])


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (("a:0.5", "b"), r"--data b has no share and others have; give it one \(b:0.5\)"),
        (("a:0", "b:1"), "a share of --data is 0; leave"),
        (("a:0.5", "b:-1"), "a share of --data is -1; leave"),
        (("a:1", "a:2"), "names a twice"),
    ],
)
def test_shares_that_make_no_sense_are_refused(data, match):
    with pytest.raises(UserError, match=match):
        parse_sources(data)


def blocks(value, count):
    return TokenBlocks(np.full(count * 4, value, np.int32), 4)


def test_shares_hold_in_every_stretch():
    counts = counts_of([30, 1000], [0.25, 0.75], needed=10)
    assert counts == [30, 90]
    found = mix([blocks(1, 30), blocks(2, 1000)], counts).tokens[:, 0]
    for start in range(0, 120, 12):
        assert (found[start : start + 12] == 1).sum() == 3


def test_a_source_that_is_too_short_for_its_share_is_read_again():
    counts = counts_of([3, 1000], [0.5, 0.5], needed=40)
    assert counts == [20, 20]
    short = TokenBlocks(np.arange(12, dtype=np.int32), 4)
    found = mix([short, blocks(-1, 1000)], counts).tokens
    assert [(found == row).all(1).sum() for row in short.tokens] == [7, 7, 6]


def test_without_shares_all_is_read():
    counts = counts_of([3, 10], None, needed=100)
    assert sorted(mix([blocks(1, 3), blocks(2, 10)], counts).tokens[:, 0]) == [1] * 3 + [2] * 10


@pytest.fixture
def arguments(tiny_model, tmp_path):
    for name in ("red.txt", "blue.txt"):
        (tmp_path / name).write_text(f"def {name[:-4]}(some, arguments):\n" * 300)
    settings = "--steps 1 --batch-size 1 --sequence-length 32 --context 32 --eval-windows 4"
    given = ["--model", tiny_model, "--output", tmp_path / "out", "--importance-tokens", "64"]
    return [*map(str, given), "--rank", "2", *settings.split()]


@pytest.mark.parametrize("repeated", [False, True])
def test_the_command_trains_on_a_mixture(arguments, tmp_path, capsys, repeated):
    named = [f"{tmp_path}/red.txt:3", f"{tmp_path}/blue.txt:1"]
    data = ["--data", named[0], "--data", named[1]] if repeated else ["--data", *named]
    assert train.main([*arguments, *data]) == 0
    said = capsys.readouterr().out
    assert "60 scored tokens of start of red.txt and blue.txt" in said
    recorded = json.loads((tmp_path / "out" / "lrqat.json").read_text())["training"]
    assert recorded["data"] == ["red.txt", "blue.txt"]
    assert recorded["data_shares"] == [0.75, 0.25]
    assert recorded["data_sha256"] == [sha256_of(tmp_path / n) for n in recorded["data"]]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (["red.txt:1", "self:1"], "--data self is mixed with no other text"),
        (["red.txt", "no.txt"], "no file at no.txt"),
    ],
)
def test_a_mixture_that_cannot_be_read_is_refused(arguments, tmp_path, monkeypatch, data, match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, DataError), match=match):
        train.main([*arguments, "--data", *data])
