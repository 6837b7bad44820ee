"""Chat templates in a process of their own: a template is a program that somebody else wrote.

transformers runs it in Jinja's sandbox, which keeps it from the machine, and not from looping for
ever (`range` in `range` in `range`) or from building a string of terabytes (`"a" * 10**12`). Both
would stop in C code, where no signal arrives. So one child process renders all chats of a tokenizer
with a limit on its memory, and is killed if a chat takes too long. A chat costs a message there and
back, some 0.1 ms.
"""

import json
import multiprocessing
import os
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from lrqat.errors import first_line
from lrqat.limited_process import end_after, limit_memory
from lrqat.portable import CAN_COPY
from lrqat.training.data.answer_spans import AnswersError, Spans, render_answers

SECONDS = 5  # for one chat; templates take milliseconds
_STARTING_SECONDS = 120.0  # where the child has to import transformers
# What a template writes beside a chat: a system prompt, a description of tools. A rendered chat is
# tokenised in this process, so its size is bounded by the chat's.
_MOST_CHARACTERS, _MOST_TIMES = 1 << 18, 16
_TOO_MUCH = "it needs more memory, or writes more, than a chat can"


class TemplateError(Exception):
    """A template that raised something, took too long, or wrote too much."""


class TemplateProcess:
    """Renders chats by a tokenizer's template.

    Args:
        tokenizer: its template, special tokens included, is what renders. Later changes of it are
            not seen.
    """

    def __init__(self, tokenizer: Any) -> None:
        # A copy of this process has the tokenizer at once. Elsewhere copying is not safe, or not
        # possible, and the child imports it.
        context: Any = multiprocessing.get_context("fork" if CAN_COPY else "spawn")
        self._here, there = context.Pipe()
        # The copy must not hold the end that tells it, by closing, that its parent is gone.
        arguments = (there, self._here if CAN_COPY else None, tokenizer)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        there.close()
        self.close = weakref.finalize(self, _end, process, self._here)
        if not self._here.poll(_STARTING_SECONDS):
            self.close()
            raise TemplateError("the process that renders chats does not start")
        self._here.recv_bytes()

    def render(self, messages: list[dict[str, Any]], tools: Any, prompted: bool = False) -> str:
        """The text of a chat, special tokens included; `prompted` to be answered.

        Raises:
            TemplateError: with what the template says, or which limit it passed.
        """
        text: str = self._ask(messages, tools, None, prompted)["text"]
        return text

    def render_answers(
        self, messages: list[dict[str, Any]], tools: Any, answers: Sequence[int]
    ) -> tuple[str, Spans]:
        """The text of a chat, and where in it some of its messages are, see `answer_spans`.

        Raises:
            AnswersError: the template does not show it.
            TemplateError: as of `render`.
        """
        said = self._ask(messages, tools, list(answers))
        if "hidden" in said:
            raise AnswersError(said["hidden"])
        return said["text"], [(start, end) for start, end in said["spans"]]

    def _ask(
        self,
        messages: list[dict[str, Any]],
        tools: Any,
        answers: list[int] | None,
        prompted: bool = False,
    ) -> dict[str, Any]:
        try:
            given = _to_bytes([messages, tools, answers, prompted])
            most = _MOST_CHARACTERS + _MOST_TIMES * len(given)
            self._here.send_bytes(given)
            if not self._here.poll(SECONDS):
                raise TemplateError(f"it takes longer than {SECONDS} seconds")
            # An emoji is written as two escapes of six characters.
            said: dict[str, Any] = json.loads(self._here.recv_bytes(12 * most))
        except RecursionError:
            raise TemplateError("the chat is nested too deeply") from None
        except (OSError, EOFError):
            raise TemplateError(_TOO_MUCH) from None
        except ValueError as error:  # a number of thousands of digits
            raise TemplateError(first_line(error)) from None
        if "error" in said:
            raise TemplateError(said["error"])
        if len(said.get("text", "")) > most:
            raise TemplateError(f"it writes {len(said['text']):,} characters for one chat")
        return said


def _to_bytes(chat: Any) -> bytes:
    """A chat as JSON; a date of a table, which JSON lacks, as the text that a template writes."""
    return json.dumps(chat, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")


def _end(process: Any, connection: Connection) -> None:
    process.kill()
    connection.close()
    process.join()


def _serve(connection: Connection, other_end: Connection | None, tokenizer: Any) -> None:
    """What the child does, until the parent is gone."""
    if other_end is not None:
        other_end.close()
    connection.send_bytes(b"ready")
    limit_memory()
    while True:
        try:
            given = json.loads(connection.recv_bytes().decode("utf-8", "surrogatepass"))
        except (EOFError, OSError, KeyboardInterrupt):
            os._exit(0)
        end_after(SECONDS + 1)  # in case the parent cannot, since it was killed
        try:
            answer = json.dumps(_rendered(tokenizer, *given)).encode()
        except MemoryError:
            answer = json.dumps({"error": _TOO_MUCH}).encode()
        except BaseException as error:  # a template is a program, and raises what it likes
            answer = json.dumps({"error": first_line(error)[:500]}).encode()
        end_after(0)
        connection.send_bytes(answer)


def _rendered(
    tokenizer: Any, messages: Any, tools: Any, answers: Any, prompted: bool
) -> dict[str, Any]:
    if answers is None:
        text = tokenizer.apply_chat_template(
            messages, tools=tools or None, tokenize=False, add_generation_prompt=prompted
        )
        return {"text": text} if isinstance(text, str) else {"error": "it writes no text"}
    try:
        text, spans = render_answers(tokenizer, messages, tools or None, answers)
    except AnswersError as error:
        return {"hidden": str(error)}
    return {"text": text, "spans": spans}
