"""Names of others where people read them."""

from hypothesis import given
from hypothesis import strategies as st

from lrqat.foreign_text import in_code_span, in_markdown, shown


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text):
    assert all(c.isprintable() or c in "\n\t" for c in shown(text))
    shown(text).encode("utf-8")  # half a surrogate pair could not be


@given(st.text(alphabet="ab<>&`[]()*\n#!\\ "))
def test_markdown_has_no_html_and_one_line(text):
    made = in_markdown(text)
    assert "\n" not in made
    for mark in "<>[]`*#":
        assert made.count(mark) == made.count("\\" + mark)
    assert "`" not in in_code_span(text)


def test_ordinary_names_stay():
    for name in ("HuggingFaceTB/SmolLM2-135M", "my_model (v2.1)", "int4-g128"):
        assert shown(name) == in_markdown(name) == in_code_span(name) == name
