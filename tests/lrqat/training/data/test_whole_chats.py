"""Blocks of chats of which answers alone are learned."""

import numpy as np
import pytest

from lrqat.data import Chat, TokenBlocks, pack
from lrqat.errors import DataError
from lrqat.training.data.mixture import mix


def chat(start, prompt, answer, *more):
    """A chat whose tokens count up from `start`; `more` are further prompts and answers."""
    learned = [on for i, n in enumerate((prompt, answer, *more)) for on in [i % 2 == 1] * n]
    return Chat(list(range(start, start + len(learned))), learned)


def packed(chats, length, said=None):
    say = (lambda message: None) if said is None else said.append
    return pack(iter(chats), None, length=length, needed_tokens=0, say=say)


def test_chats_begin_in_the_block_that_they_end_in():
    made = packed([chat(10, 2, 2), chat(20, 1, 3), chat(30, 2, 4)], 8)
    assert made.tokens.tolist() == [
        [10, 11, 12, 13, 20, 21, 22, 23],
        [30, 31, 32, 33, 34, 35, 10, 11],
    ]
    assert made.learned.astype(int).tolist() == [[0, 0, 1, 1, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 0, 0]]


def test_the_rest_of_a_block_is_the_beginning_of_the_next_chat_and_not_learned():
    made = packed([chat(10, 2, 4), chat(20, 1, 6), chat(30, 0, 1)], 8)
    assert made.tokens.tolist() == [
        [10, 11, 12, 13, 14, 15, 20, 21],
        [20, 21, 22, 23, 24, 25, 26, 30],
    ]
    assert made.learned[0].astype(int).tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert made.learned[1].astype(int).tolist() == [0, 1, 1, 1, 1, 1, 1, 1]


def test_a_long_chat_is_cut_after_an_answer():
    said = []
    made = packed([chat(10, 2, 2, 1, 2, 2, 3), chat(30, 1, 7)], 8, said)
    assert made.tokens[0].tolist() == [*range(10, 17), 30]
    assert made.learned[0].astype(int).tolist() == [0, 0, 1, 1, 0, 1, 1, 0]
    assert "1 of 2 chats are longer than a sequence of 8 tokens" in said[0]


def test_a_long_answer_is_cut_within():
    made = packed([chat(10, 2, 20), chat(40, 2, 2)], 8)
    assert made.tokens[0].tolist() == list(range(10, 18))
    assert made.learned[0].sum() == 6


def test_no_answer_within_a_sequence_is_refused():
    with pytest.raises(DataError, match="no chat has an answer to learn within a sequence"):
        packed([chat(10, 20, 2)], 8)
    with pytest.raises(DataError, match="has 4 tokens, less than one sequence of 8"):
        packed([chat(10, 2, 2)], 8)


def test_every_learned_token_weighs_the_same_and_one_on_average():
    made = packed([chat(10, 2, 2), chat(20, 1, 3), chat(30, 6, 2)], 8)
    weights = np.stack([made[i]["loss_weights"].numpy() for i in range(2)])
    assert weights.mean() == pytest.approx(1)
    assert len(np.unique(weights)) == 2
    # The weight stands at the position that predicts the token.
    assert (weights[0] > 0).astype(int).tolist() == [0, 1, 1, 0, 1, 1, 1, 0]
    assert made.first(1)[0]["input_ids"].tolist() == made.tokens[0].tolist()


def test_texts_beside_chats_are_learned_whole():
    chats = packed([chat(10, 2, 2), chat(20, 1, 3)], 8)
    text = TokenBlocks(np.arange(100, 116, dtype=np.int32), 8)
    made = mix([chats, text], [1, 2])
    assert made.learned.sum(1).tolist() == [8, 5, 8]
    assert mix([text, text], [1, 1]).learned is None
