r"""What a chat template writes around the messages of a chat, found out by running it.

    opening                                     if there is no system message
    system_before + system + system_after       if there is one, which is the first message
    before + message + after                    each message of a user or an assistant
    prompt                                      what an answer begins after

Most templates are of this form (ChatML, Llama 3, Phi 3, Zephyr, Gemma without a system message),
whatever their Jinja looks like. So nothing is guessed from the source: messages that occur nowhere
else are put in, the texts around them are read off, and then every other chat that is tried has to
come out the same. A template that does more (tools in the text, dates, `<think>` taken out of
earlier answers) is not of this form, or is so for plain chats alone, which is all that is claimed.

A template is a program that somebody else wrote: it is tried first in a process that may only use
so much time and memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lrqat.errors import first_line
from lrqat.limited_process import failure_of

_SECONDS = 5
_SYSTEM, _USER, _ASSISTANT = "system", "user", "assistant"
# No template has these in it. Nor do they begin or end with blanks, which many templates strip.
_MARKS = {_SYSTEM: "Qs7Yx-sys", _USER: "Qu3Kz-usr", _ASSISTANT: "Qa9Vw-ans"}
_MOST_CHARACTERS = 20_000

Chat = Sequence[tuple[str, str]]
Render = Callable[[Chat, bool], str]


class OtherFormError(ValueError):
    """A template that is not of the form above; says why."""


@dataclass(frozen=True)
class ChatForm:
    """The texts around messages.

    Attributes:
        opening: before a chat without a system message, the BOS token included.
        prompt: what an answer begins after.
        around: before and after a message of "user" and of "assistant".
        system: before and after a system message, the opening included; None: it takes none.
    """

    opening: str
    prompt: str
    around: dict[str, tuple[str, str]]
    system: tuple[str, str] | None

    def render(self, chat: Chat, prompted: bool) -> str:
        """A chat as the form has it.

        Args:
            chat: (role, text) each; a system message is the first, if there is one.
            prompted: whether an answer is to come.
        """
        text, rest = self.opening, list(chat)
        if rest and rest[0][0] == _SYSTEM:
            assert self.system is not None
            text = rest.pop(0)[1].join(self.system)
        for role, message in rest:
            text += message.join(self.around[role])
        return text + (self.prompt if prompted else "")


def find_chat_form(template: str, bos: str, eos: str) -> ChatForm:
    """The form of a Jinja template.

    Args:
        template: its source.
        bos: text of the token that begins a text, "" for none.
        eos: text of the one that ends it.

    Raises:
        OtherFormError: it has another form, or does not run.
    """
    render = _renderer(template, bos, eos)
    failure = failure_of(lambda: _learn(render), _SECONDS)
    if failure is not None:
        raise OtherFormError(failure)
    return _learn(render)


def _renderer(template: str, bos: str, eos: str) -> Render:
    """A function that runs the template as transformers does."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def render(chat: Chat, prompted: bool) -> str:
        messages = [{"role": role, "content": text} for role, text in chat]
        rendered = render_jinja_template(
            [messages],
            chat_template=template,
            add_generation_prompt=prompted,
            bos_token=bos,
            eos_token=eos,
        )
        text = str(rendered[0][0])  # of chats, and where their answers are
        if len(text) > _MOST_CHARACTERS:
            raise OtherFormError("it writes more than thousands of characters for a few words")
        return text

    return render


def _learn(render: Render) -> ChatForm:
    try:
        found = _read_off(render)
    except OtherFormError:
        raise
    except Exception as error:  # a template is a program, and raises what it likes
        raise OtherFormError(f"it does not run: {first_line(error):.200}") from None
    for chat in _chats(found.system is not None):
        if any(render(chat, asked) != found.render(chat, asked) for asked in (False, True)):
            raise OtherFormError("it writes more around messages than their role and place say")
    return found


def _read_off(render: Render) -> ChatForm:
    user, answer = ((role, _MARKS[role]) for role in (_USER, _ASSISTANT))
    turns = [user, answer, user]
    head, to_answer, to_user, _ = _around(render(turns, False), turns)
    user_after = _around(render([user], False), [user])[-1]
    answer_after = _around(render([user, answer], False), [user, answer])[-1]
    before_user = _without_start(to_user, answer_after)
    before_answer = _without_start(to_answer, user_after)
    return ChatForm(
        opening=_without_end(head, before_user),
        prompt=_without_start(render([user], True), render([user], False)),
        around={_USER: (before_user, user_after), _ASSISTANT: (before_answer, answer_after)},
        system=_system(render, user, before_user),
    )


def _system(render: Render, user: tuple[str, str], before_user: str) -> tuple[str, str] | None:
    system = (_SYSTEM, _MARKS[_SYSTEM])
    try:
        text = render([system, user], False)
    except Exception:  # Gemma's raises one of its own
        return None
    head, between, _ = _around(text, [system, user])
    return head, _without_end(between, before_user)


def _around(text: str, chat: Chat) -> list[str]:
    """The texts before, between and after messages."""
    parts, rest = [], text
    for _, message in chat:
        before, found, rest = rest.partition(message)
        if not found:
            raise OtherFormError("it does not write every message of a chat")
        parts.append(before)
    if any(mark in part for part in (*parts, rest) for mark in _MARKS.values()):
        raise OtherFormError("it writes a message of a chat more than once, or in another order")
    return [*parts, rest]


def _without_start(text: str, start: str) -> str:
    if not text.startswith(start):
        raise OtherFormError("what it writes after a message depends on what follows")
    return text[len(start) :]


def _without_end(text: str, end: str) -> str:
    if not text.endswith(end):
        raise OtherFormError("what it writes before a message depends on its place")
    return text[: len(text) - len(end)]


def _chats(with_system: bool) -> list[Chat]:
    """Chats that a form has to explain: of several turns, with text of several kinds."""
    turns = [(_USER, "What is 2 + 2?"), (_ASSISTANT, "4.\n\nOr `four`."), (_USER, "{{ x }} <b>"),
             (_ASSISTANT, "é 你好"), (_USER, "a\nb")]  # fmt: skip
    plain = [turns[:count] for count in (1, 2, 3, 5)]
    system = [(_SYSTEM, "Be brief.\nBe kind.")]
    return [*plain, *([*system, *chat] for chat in plain if with_system)]
