"""Files of JSON that a report is made of, nearly as our commands write them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrqat.reporting.page import render
from lrqat.reporting.sources import gather
from lrqat.reporting.summary import rows_of
from tests.fuzz.harness import altered_bytes, altered_json, fuzz, outcome
from tests.support.report_parts import frontier_of, parity_of, token, tokens_of, training_of

NAME = "model.layers.0.mlp.up_proj"
GOOD = [
    tokens_of([token("a", 0.1), token("b", 2.0)]),
    parity_of(),
    frontier_of(),
    training_of() | {"weights": {NAME: 0.01}, "sensitivity": {NAME: 0.1}},
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "x.json"


def read(path):
    return gather([str(path)], None, lambda items: items)


@fuzz(60)
@given(data=st.data())
def test_parts_of_a_report(path, data):
    path.write_text(json.dumps(data.draw(altered_json(GOOD))))
    outcome(lambda: rows_of(read(path)))


@fuzz(20)
@given(data=st.data())
def test_bytes_of_parts(path, data):
    good = [json.dumps(each).encode() for each in GOOD]
    path.write_bytes(data.draw(altered_bytes(good)))
    outcome(lambda: rows_of(read(path)))


@fuzz(6)
@given(data=st.data())
def test_whole_pages(path, data):
    path.write_text(json.dumps(data.draw(altered_json(GOOD))))
    outcome(lambda: render(read(path)))
