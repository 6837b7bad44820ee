"""Where in a rendered chat the answers stand, which is what the loss is taken over.

A template says it itself by {% generation %} ... {% endgeneration %}, as in transformers'
`return_assistant_tokens_mask`. Where it does not, the chat is rendered again up to each answer:

    up to answer 2, with what asks for it     <user> a <assistant> b <user> c <assistant>
    and with answer 2                         <user> a <assistant> b <user> c <assistant> d <end>
                                                                                          ^^^^^^^

An answer ends with what closes it, so that the model learns to stop; white space after that is not
learned. Templates that leave something out of earlier answers (Qwen3's thoughts) are no prefix of
themselves there: such an answer ends at what closes it.
"""

import re
from collections.abc import Sequence
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

ANSWERING = "assistant"  # the role
_SENTINEL = "\ue5a1\ue5a2"  # of a private area of Unicode: in no template and no chat
_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")

Messages = list[dict[str, Any]]
Spans = list[tuple[int, int]]


class AnswersError(Exception):
    """A template that does not show where its answers are."""


def render_answers(
    tokenizer: Any, messages: Messages, tools: Any, answers: Sequence[int]
) -> tuple[str, Spans]:
    """The text of a chat, and the characters [start, end) of some of its answers.

    Args:
        tokenizer: its template renders.
        messages: the chat.
        tools: for the template, or None.
        answers: which messages, in their order; their role is `ANSWERING`.

    Raises:
        AnswersError: the template rewrites what comes before an answer, or marks other messages.
        Exception: whatever the template raises.
    """
    template = tokenizer.get_chat_template(None, tools)
    if _MARKER.search(template):
        return _marked(tokenizer, template, messages, tools, answers)
    text = _render(tokenizer, messages, tools)
    return text, [_span(tokenizer, text, messages, tools, answer) for answer in answers]


def _marked(
    tokenizer: Any, template: str, messages: Messages, tools: Any, answers: Sequence[int]
) -> tuple[str, Spans]:
    """By the template's own markers."""
    # As apply_chat_template does; it gives no spans without tokens.
    given = [{key: item for key, item in m.items() if item is not None} for m in messages]
    rendered: Any = render_jinja_template(
        [given],
        tools=tools,
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    [text], [spans] = rendered
    marked = [i for i, message in enumerate(messages) if message.get("role") == ANSWERING]
    if list(answers) == marked:
        return text, spans
    if len(spans) != len(marked):
        raise AnswersError(f"it marks {len(spans)} answers of {len(marked)}")
    return text, [span for i, span in zip(marked, spans, strict=True) if i in answers]


def _span(
    tokenizer: Any, text: str, messages: Messages, tools: Any, answer: int
) -> tuple[int, int]:
    """By rendering the chat up to an answer, and with it."""
    before = _render(tokenizer, messages[:answer], tools, asking=True) if answer else ""
    if not text.startswith(before):
        raise AnswersError(f"it rewrites what comes before message {answer + 1}")
    upto = _render(tokenizer, messages[: answer + 1], tools)
    if text.startswith(upto):
        end = len(upto)
    else:
        end = _end_of_rewritten(tokenizer, text, len(before), messages[: answer + 1], tools)
    return len(before), len(text[:end].rstrip())


def _end_of_rewritten(tokenizer: Any, text: str, start: int, messages: Messages, tools: Any) -> int:
    """Where an answer ends that is written in another way when more follows."""
    marked = [*messages[:-1], messages[-1] | {"content": _SENTINEL}]
    _, found, closing = _render(tokenizer, marked, tools).rpartition(_SENTINEL)
    place = text.find(closing.strip(), start) if found and closing.strip() else -1
    if place < 0:
        raise AnswersError("it writes an answer in another way when more follows")
    return place + len(closing.strip())


def _render(tokenizer: Any, messages: Messages, tools: Any, *, asking: bool = False) -> str:
    text = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=asking
    )
    if not isinstance(text, str):
        raise AnswersError("it writes no text")
    return text
