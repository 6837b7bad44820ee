"""Which tokens of a chat are its answers: as transformers says where a template marks them."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from lrqat.data import documents
from lrqat.errors import DataError
from tests.support.small_tokenizers import byte_level

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}"
    "{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
)
# As Qwen3's: what was thought is left out of all answers but the last.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "<think>red</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COUNTING = "{{ messages | length }}" + PLAIN
CHAT = [
    {"role": "system", "content": "blue"},
    {"role": "user", "content": "red cat \U0001f600"},
    {"role": "assistant", "content": "d \U0001f408\n"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "dog"},
]


@pytest.fixture
def chatty():
    made = byte_level("user assistant red cat blue dog", [("bytes", True)], False, size=300)
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")
    tokenizer.chat_template = PLAIN
    return tokenizer


def read(tokenizer, folder, row, loss_on="auto"):
    (folder / "rows.jsonl").write_text(json.dumps(row))
    [chat] = documents(str(folder / "rows.jsonl"), tokenizer, loss_on=loss_on)
    return chat


def learned_text(tokenizer, chat):
    """The text of every run of learned tokens."""
    pairs = list(zip(chat.ids, chat.learned, strict=True))
    runs = "".join(tokenizer.decode([i]) if on else "\0" for i, on in pairs).split("\0")
    whole, texts = [], []
    for i, on in pairs:
        if on:
            whole.append(i)
        elif whole:
            texts.append(tokenizer.decode(whole))
            whole = []
    assert runs
    return [*texts, *([tokenizer.decode(whole)] if whole else [])]


def test_marked_answers_are_those_of_transformers(chatty, tmp_path):
    chatty.chat_template = MARKED
    right = chatty.apply_chat_template(
        CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    chat = read(chatty, tmp_path, {"messages": CHAT})
    assert chat.ids == right["input_ids"]
    assert chat.learned == [bool(on) for on in right["assistant_masks"]]
    assert sum(chat.learned) > 5


def test_answers_that_are_not_marked_are_the_same(chatty, tmp_path):
    found = read(chatty, tmp_path, {"messages": CHAT})
    chatty.chat_template = MARKED
    assert found == read(chatty, tmp_path, {"messages": CHAT})
    assert learned_text(chatty, found) == ["d \U0001f408\n<|im_end|>", "dog<|im_end|>"]


def test_an_answer_that_is_rewritten_later_ends_at_what_closes_it(chatty, tmp_path):
    chatty.chat_template = FORGETFUL
    found = read(chatty, tmp_path, {"messages": CHAT})
    assert learned_text(chatty, found) == [
        "d \U0001f408\n<|im_end|>",
        "<think>red</think>dog<|im_end|>",
    ]


@pytest.mark.parametrize("template", [PLAIN, MARKED])
@pytest.mark.parametrize(
    ("row", "loss_on", "texts"),
    [
        ({"messages": CHAT}, "completion", ["dog<|im_end|>"]),
        ({"prompt": CHAT[:3], "completion": CHAT[3:]}, "auto", ["dog<|im_end|>"]),
        ({"prompt": "red", "completion": "dog"}, "auto", ["dog<|im_end|>"]),
        ({"instruction": "red", "input": "cat", "output": "dog"}, "auto", ["dog<|im_end|>"]),
        ({"prompt": CHAT[:3], "completion": CHAT[3:]}, "assistant", 2),
    ],
)
def test_what_is_learned_by_form(chatty, tmp_path, template, row, loss_on, texts):
    chatty.chat_template = template
    found = learned_text(chatty, read(chatty, tmp_path, row, loss_on))
    assert (len(found) if isinstance(texts, int) else found) == texts


def test_all_may_be_learned(chatty, tmp_path):
    assert read(chatty, tmp_path, {"messages": CHAT}, "all").learned is None


def test_a_template_that_does_not_show_its_answers_is_refused(chatty, tmp_path):
    chatty.chat_template = COUNTING
    with pytest.raises(DataError, match="rewrites what comes before message 3; give --loss-on"):
        read(chatty, tmp_path, {"messages": CHAT})
    assert read(chatty, tmp_path, {"messages": CHAT}, "all").ids


def test_a_text_has_no_answers(chatty, tmp_path):
    with pytest.raises(DataError, match=r"is a text, which has no assistant .* leave --loss-on"):
        read(chatty, tmp_path, {"text": "red"}, "assistant")


def test_chats_without_answers_are_passed_over(chatty, tmp_path):
    rows = [{"messages": CHAT[:2]}, {"messages": CHAT}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(list(documents(str(tmp_path / "rows.jsonl"), chatty, loss_on="assistant"))) == 1
