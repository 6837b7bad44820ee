"""Answers of the model itself: what it would say alone, kept where a later run finds them."""

import json
import shutil

import pytest
import torch

from lrqat.errors import DataError, UserError
from lrqat.models import hub
from lrqat.training.config import TrainConfig
from lrqat.training.data.documents import documents
from lrqat.training.data.self_answers import Writing, answers_file, write_answers
from lrqat.training.run import train

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ROWS = [
    {"prompt": "def"},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "class"},
                  {"role": "assistant", "content": "left out"}]},
    {"instruction": "import", "input": "what?"},
    {"text": "a longer prompt than the others, of several words"},
    {"prompt": "word " * 400},
]  # fmt: skip
WRITING = Writing(length=64, tokens=10_000, batch_size=3, seed=0)


@pytest.fixture(scope="module")
def plain(tiny_model, tmp_path_factory):
    """A model with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "plain"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def chatting(plain, tmp_path_factory):
    """One that is so sure of itself that what is drawn is the most likely token."""
    folder = tmp_path_factory.mktemp("models") / "chatting"
    shutil.copytree(plain, folder)
    model = hub.load_model(str(folder), dtype=torch.float32)
    model.get_output_embeddings().weight.data *= 1e4
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def alone(model, tokenizer, messages):
    """The most likely answer to one prompt, without a cache, a batch or padding."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = len(ids)
    while len(ids) < WRITING.length and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_answers_are_what_the_model_says_alone(chatting, prompts, tmp_path):
    model = hub.load_model(str(chatting), dtype=torch.float32)
    tokenizer = hub.load_tokenizer(chatting)
    path = tmp_path / "answers.jsonl"
    before = torch.random.get_rng_state()
    count = write_answers(model, tokenizer, prompts, path, WRITING)
    assert torch.equal(torch.random.get_rng_state(), before)
    chats = [json.loads(line)["messages"] for line in path.read_text("utf-8").splitlines()]
    assert count == len(chats) == 4, "one prompt leaves no room"
    assert [m["content"] for m in chats[1][:2]] == ["Be brief.", "class"]
    assert chats[2][0]["content"] == "import\n\nwhat?"
    for messages in chats:
        assert messages[-1]["content"] == alone(model, tokenizer, messages[:-1])
        assert messages[-1]["content"] != "left out"
    read = list(documents(str(path), tokenizer, loss_on="assistant"))
    assert len(read) == 4
    assert all(any(chat.learned) and not all(chat.learned) for chat in read)


def test_the_same_seed_gives_the_same_answers(plain, prompts, tmp_path):
    model = hub.load_model(str(plain), dtype=torch.float32)
    tokenizer = hub.load_tokenizer(plain)
    made = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(made))  # what ran before does not matter
        writing = Writing(64, 10_000, 3, seed)
        write_answers(model, tokenizer, prompts, tmp_path / name, writing)
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1] != made[2]


def test_a_run_keeps_its_answers_and_another_takes_them(
    plain, prompts, text_file, tmp_path, monkeypatch
):
    small = {"steps": 1, "batch_size": 2, "sequence_length": 64, "rank": 4, "context": 32,
             "eval_windows": 2, "importance_tokens": 64, "stages": "model",
             "model": str(plain), "eval_data": str(text_file)}  # fmt: skip
    run = small | {"data": f"self:{prompts}", "output": str(tmp_path / "run")}
    said = []
    output = train(TrainConfig(**run), say=said.append).output
    (answers,) = output.glob("answers-*.jsonl")
    assert any(f"in {answers}" in line for line in said)
    training = json.loads((output / "lrqat.json").read_text())["training"]
    assert training["data"] == "self:prompts.jsonl", "no path of this machine"
    assert len(training["data_sha256"]) == 64
    monkeypatch.setattr("lrqat.training.data.corpus.write_answers", None)  # cannot be called
    train(TrainConfig(**run), overwrite=True)
    train(TrainConfig(**small, data=str(answers), output=str(tmp_path / "later")))


def test_other_prompts_models_and_settings_have_files_of_their_own(prompts, tmp_path):
    first = answers_file(tmp_path, prompts, "m", WRITING)
    others = {
        answers_file(tmp_path, prompts, "other", WRITING),
        answers_file(tmp_path, prompts, "m", Writing(64, 10_000, 3, 1)),
    }
    prompts.write_text('{"prompt": "x"}\n')
    others.add(answers_file(tmp_path, prompts, "m", WRITING))
    assert len(others | {first}) == 4


def test_what_cannot_be_answered_is_refused(chatting, tiny_model, tmp_path):
    model = hub.load_model(str(chatting), dtype=torch.float32)
    path = tmp_path / "prompts.jsonl"
    cases = {
        '{"question": "x"}': (chatting, "none of the columns"),
        '{"prompt": ["x"]}': (chatting, "is no text"),
        json.dumps({"prompt": "x " * 999}): (chatting, "no answer to any prompt"),
        '{"prompt": "x"}': (tiny_model, "no chat template"),
    }
    for line, (source, message) in cases.items():
        path.write_text(line + "\n")
        with pytest.raises(DataError, match=message):
            write_answers(model, hub.load_tokenizer(source), path, tmp_path / "out", WRITING)
        assert not (tmp_path / "out").exists()
    for data in ("self:p.jsonl", ("self:p.jsonl", "b.txt")):
        with pytest.raises(UserError, match=r"--eval-data|mixed"):
            TrainConfig(model="m", data=data, output="o")
