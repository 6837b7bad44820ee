"""BOS at the beginning of every block."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lrqat.training.data.apart import ALONE, POSITIONS, keep_apart
from lrqat.training.data.bos import begin_blocks
from lrqat.training.data.packing import STREAM

BOS = 0


@st.composite
def streams(draw):
    """Documents end to end, some of which begin with BOS: (tokens, starts)."""
    documents = draw(st.lists(st.tuples(st.booleans(), st.integers(1, 30)), min_size=1, max_size=9))
    sizes = [size + bos for bos, size in documents]
    tokens = np.arange(1, sum(sizes) + 1, dtype=np.int32)
    begins = np.cumsum([0, *sizes[:-1]])
    tokens[[begin for begin, (bos, _) in zip(begins, documents, strict=True) if bos]] = BOS
    return tokens, np.isin(np.arange(len(tokens)), begins)


@given(streams(), st.integers(2, 12), st.sampled_from([STREAM, POSITIONS, ALONE]))
def test_every_block_begins_with_bos_and_no_other_token_is_lost(stream, length, how):
    tokens, starts = stream
    more, begun = begin_blocks(tokens, starts, length, how, BOS)
    assert more[more != BOS].tolist() == tokens[tokens != BOS].tolist()
    assert len(more) == len(begun)
    if len(more) < length:
        return
    blocks = keep_apart(more, begun, length, how)
    assert (blocks.tokens[:, 0] == BOS).all()
    if how == POSITIONS:
        assert blocks.starts[:, 0].all()
        # A document that a block begins goes on after BOS, as the same document.
        continued = (blocks.tokens[:, 0] == BOS) & ~np.isin(blocks.tokens[:, 1], tokens[starts])
        assert not blocks.starts[continued, 1].any()


@given(streams(), st.integers(2, 12))
def test_where_bos_is_there_none_is_added(stream, length):
    tokens, starts = stream
    once = begin_blocks(tokens, starts, length, STREAM, BOS)
    twice = begin_blocks(*once, length, STREAM, BOS)
    assert all((a == b).all() for a, b in zip(once, twice, strict=True))
