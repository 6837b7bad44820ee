"""The file for llama-perplexity, read by a decoder written from its source."""

import struct

import numpy as np
import pytest

from lrqat.errors import OutputError
from lrqat.evaluation.kl_base import encode_rows, write_kl_base
from lrqat.evaluation.perplexity import Windows, log_softmax

CONTEXT = 16


def decode(path):
    """tokens, and (log-probability floats) of every scored position, as `kl_divergence` reads."""
    data = path.read_bytes()
    assert data[:8] == b"_logits_"
    context, vocabulary, chunks = struct.unpack_from("<3i", data, 8)
    at = 20
    tokens = np.array(struct.unpack_from(f"<{context * chunks}i", data, at))
    at += 4 * context * chunks
    width = 2 * ((vocabulary + 1) // 2) + 4
    count = chunks * (context - 1 - context // 2)
    assert len(data) == at + 2 * width * count
    rows = []
    for _ in range(count):
        scale, least = struct.unpack_from("<2f", data, at)
        codes = struct.unpack_from(f"<{vocabulary}H", data, at + 8)
        rows.append([scale * code + least for code in codes])
        at += 2 * width
    return tokens.reshape(chunks, context), np.array(rows)


def model(vocabulary, spread):
    table = np.random.default_rng(0).normal(0, spread, (vocabulary, vocabulary))
    return lambda tokens: table[tokens].astype(np.float32)


@pytest.mark.parametrize("vocabulary", [50, 51])
@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_log_probabilities_come_back(vocabulary, spread, tmp_path):
    tokens = np.random.default_rng(1).integers(0, vocabulary, 5 * CONTEXT + 3)
    windows = Windows.cut(tokens.tolist(), CONTEXT, bos=2)
    logits_of, path = model(vocabulary, spread), tmp_path / "base.bin"
    size = write_kl_base(path, logits_of, windows)
    assert size == path.stat().st_size
    found_tokens, found = decode(path)
    assert np.array_equal(found_tokens, windows.tokens)
    logits = np.concatenate([logits_of(window)[windows.scored] for window in windows.tokens])
    exact = log_softmax(logits)
    within = logits > logits.max(1, keepdims=True) - 16
    assert np.abs(found - exact)[within].max() < 16 / 65535 / 2 + 4e-6
    # What is cut off is set to the least value that is kept.
    assert (found[~within] >= exact[~within] - 1e-5).all()
    assert (~within).any() == (spread == 6.0)


def test_equal_logits_have_no_scale():
    record = encode_rows(np.full((1, 7), 3.5, np.float32))
    scale, least = record[0, :4].view("<f4")
    assert scale == 0
    assert least == pytest.approx(-np.log(7))
    assert not record[0, 4:].any()


def test_the_largest_code_does_not_overflow():
    logits = np.random.default_rng(0).normal(0, 9, (500, 33)).astype(np.float32)
    codes = encode_rows(logits)[:, 4:-1]
    assert (codes.max(1) >= 65534).all()
    assert np.array_equal(codes.argmax(1), logits.argmax(1))


def test_nothing_half_written_stays(tmp_path):
    def fails(tokens):
        if len(calls) == 2:
            raise ValueError
        calls.append(1)
        return np.zeros((len(tokens), 5), np.float32)

    calls, path = [], tmp_path / "base.bin"
    windows = Windows.cut([1] * 100, CONTEXT)
    with pytest.raises(ValueError):  # noqa: PT011
        write_kl_base(path, fails, windows)
    assert not list(tmp_path.iterdir())
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        write_kl_base(path, fails, windows)
    assert path.read_text() == "mine"
