"""The texts of a run: what is held out, what is measured, and what the plan finds missing."""

import json
import shutil

import pytest

from lrqat.cli import evaluate, train
from lrqat.errors import DataError
from lrqat.evaluation.text import EvaluationText, encode
from lrqat.models import hub
from lrqat.training.config import TrainConfig
from lrqat.training.data.corpus import read_corpus
from lrqat.training.plan import plan_training
from lrqat.training.run import train as run_training
from tests.support.paths import SHARED

LINE = "def function_of(some, arguments):\n"
CHAT = [{"role": "user", "content": "def f"}, {"role": "assistant", "content": "return 3"}]


@pytest.fixture
def settings(tiny_model, tmp_path):
    (tmp_path / "text.txt").write_text("\n" + LINE * 400)
    return {
        "model": str(tiny_model), "data": str(tmp_path / "text.txt"),
        "output": str(tmp_path / "out"), "steps": 1, "batch_size": 1, "sequence_length": 32,
        "context": 32, "eval_windows": 4, "rank": 2, "importance_tokens": 64,
        "stages": "model", "teacher": "none",
    }  # fmt: skip


@pytest.fixture
def read(settings):
    """Function of changed settings -> (corpus, what it said)."""
    tokenizer = hub.load_tokenizer(settings["model"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"

    def call(**changes):
        said = []
        return read_corpus(TrainConfig(**settings | changes), tokenizer, None, said.append), said

    return call


def rows_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_text_that_begins_with_a_blank_line_is_held_out_from_and_trained_on(read):
    corpus, said = read()
    assert corpus.windows.tokens.shape == (4, 32)
    assert len(said) == 1
    assert "scored tokens of start of text.txt" in said[0]


def test_windows_of_a_short_held_out_text_are_shorter_and_it_is_said(read, settings, tmp_path):
    corpus, said = read(context=512)
    tokens = len(encode(hub.load_tokenizer(settings["model"]), "\n" + LINE * 40)) - 1
    assert corpus.windows.context == pytest.approx(tokens // 2, abs=8)
    assert f"windows of {corpus.windows.context}, not 512" in said[0]
    with pytest.raises(DataError, match="give more text or a smaller --context"):
        read(context=513)
    with pytest.raises(DataError, match="too few to measure perplexity on; give --eval-data"):
        read(data=rows_file(tmp_path / "few.jsonl", [{"text": LINE}] * 12))


def test_the_context_that_was_measured_is_recorded(settings):
    settings |= {"context": 512, "method": "rtn"}
    report = run_training(TrainConfig(**settings))
    reference = json.loads((report.output / "lrqat.json").read_text())["reference"]
    assert 8 <= reference["context"] < 512


def test_held_out_chats_are_measured_as_the_tokens_of_their_template(read, tmp_path, settings):
    rows = [{"messages": CHAT}] * 200
    corpus, _ = read(data=rows_file(tmp_path / "chats.jsonl", rows))
    tokenizer = hub.load_tokenizer(settings["model"])
    assert (corpus.windows.tokens == tokenizer.eos_token_id).sum() > 4
    assert set(corpus.windows.tokens.ravel()) == set(corpus.blocks.tokens.ravel())


@pytest.mark.parametrize("teacher", [{}, {"teacher": "self", "cross_entropy_weight": 0.5}])
def test_a_run_learns_the_answers_of_chats(read, settings, tmp_path, tiny_model, teacher):
    data = rows_file(tmp_path / "chats.jsonl", [{"messages": CHAT}] * 200)
    corpus, said = read(data=data)
    assert 0.3 < corpus.blocks.learned.mean() < 0.9
    assert said[0].endswith("loss on all answers of a chat")
    assert read(data=data, loss_on="all")[0].blocks.learned is None
    model = tmp_path / "chatty"
    shutil.copytree(tiny_model, model)
    tokenizer = hub.load_tokenizer(model)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer.save_pretrained(model)
    cache = {"teacher_cache": str(tmp_path / "cache")} if teacher else {}
    run = settings | teacher | cache | {"model": str(model), "data": data}
    report = run_training(TrainConfig(**run))
    recorded = json.loads((report.output / "lrqat.json").read_text())["training"]
    assert recorded["loss_on"] == "auto"


def test_rows_given_for_evaluation_are_measured_as_what_they_are(read, tmp_path, settings):
    given = rows_file(tmp_path / "valid.jsonl", [{"text": LINE * 5}] * 30)
    corpus, _ = read(eval_data=given)
    plain = tmp_path / "valid.txt"
    plain.write_text("\n".join([LINE * 5] * 30))
    expected, _ = read(eval_data=str(plain))
    assert (corpus.windows.tokens == expected.windows.tokens).all()
    assert corpus.evaluation.sha256 != expected.evaluation.sha256
    assert expected.evaluation.sha256 == EvaluationText.read(plain).sha256


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"data": "/no/such.txt"}, "no file at /no/such.txt"),
        ({"data": "no-such-owner/no-such-dataset"}, "no-such-owner/no-such-dataset"),
        ({"eval_data": "/no/such.txt"}, "no text file at /no/such.txt"),
        ({"data": "self", "eval_data": __file__, "sequence_length": 4096}, "cannot write"),
    ],
)
def test_a_text_that_is_not_there_is_found_by_the_plan(settings, change, match):
    with pytest.raises(DataError, match=match):
        plan_training(TrainConfig(**settings | change))


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared models")
def test_the_smallest_text_trains_the_smallest_model(tmp_path):
    arguments = ["--model", SHARED / "models/stories260k", "--grid", "q8_0", "--steps", "1"]
    arguments += ["--data", SHARED / "data/tinystories-sample.txt", "--output", tmp_path / "out"]
    assert train.main(list(map(str, arguments))) == 0


def test_a_length_past_what_was_trained_is_warned_of(settings, tmp_path, capsys):
    trained = hub.load_config(settings["model"]).max_position_embeddings
    config = TrainConfig(**settings | {"sequence_length": trained + 1, "context": trained})
    assert [warning.split()[:2] for warning in plan_training(config).warnings] == [
        ["--sequence-length", str(trained + 1)]
    ]
    text = tmp_path / "long.txt"
    text.write_text(LINE * 400)
    arguments = [settings["model"], "--data", str(text), "--windows", "1"]
    for context, warned in ((trained, False), (trained + 2, True)):
        assert evaluate.main([*arguments, "--context", str(context)]) == 0
        assert (f"--context {context} is more than the" in capsys.readouterr().err) == warned
