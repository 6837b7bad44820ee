"""`train` and the exports, killed at random moments.

`make kills` kills each 50 times, at other moments for another KILLS_SEED; a test run has one
kill of each, with the same random numbers every time. A third of the kills is at any moment of the
run, a third while it writes, and a third from when names change, which takes milliseconds.
"""

import os
from dataclasses import replace

import pytest
from rich.console import Console
from rich.table import Table

from tests.kills.harness import Case, Nursery, Trial
from tests.kills.nursery import PHASES

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL"),
    pytest.mark.slow,
]
KILLS = int(os.environ.get("KILLS", "1"))
SEED = os.environ.get("KILLS_SEED", "0")

TRAIN = (
    "train --model {model} --data {text} --output {{place}}/run --grid q4_0 --rank 4 --steps 4 "
    "--save-every 2 --batch-size 1 --sequence-length 32 --context 32 --eval-windows 2 "
    "--range-init minmax --lora-init random --stages model --seed "
)
GGUF = "export {runs}/%s --format gguf --output {{place}}/model.gguf"
SHARDS = GGUF + " --split-max-size 20000"
ONNX = "export {runs}/%s --format onnx --output {{place}}/onnx"
AGAIN = " --overwrite"
FIRST = "model-00001-of-00004.gguf"
RUN, FOLDER = ("run", "lrqat.json"), ("onnx", "model.onnx")
CASES = {
    "train": Case(TRAIN + "1", *RUN, resumes=True),
    "train --overwrite": Case(TRAIN + "1" + AGAIN, *RUN, TRAIN + "0", resumes=True),
    "export gguf": Case(GGUF % "1", "model.gguf"),
    "export gguf --overwrite": Case(GGUF % "1" + AGAIN, "model.gguf", "", GGUF % "0"),
    "export gguf, 4 files": Case(SHARDS % "1", FIRST),
    "export gguf, 4 files, --overwrite": Case(SHARDS % "1" + AGAIN, FIRST, "", SHARDS % "0"),
    "export onnx": Case(ONNX % "1", *FOLDER),
    "export onnx --overwrite": Case(ONNX % "1" + AGAIN, *FOLDER, ONNX % "0"),
}


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    made = Nursery(tmp_path_factory.mktemp("nursery") / "log")
    yield made
    made.close()


@pytest.fixture(scope="module")
def places(nursery, text_file, tmp_path_factory):
    """Function of a command -> the same with the places of what it reads."""
    from lrqat.models.small_llama import make_tokenizer, make_untrained_model

    model, runs = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("runs")
    tokenizer = make_tokenizer([text_file.read_text(encoding="utf-8")], vocabulary=300)
    sizes = {"hidden": 64, "intermediate": 64, "layers": 1, "heads": 2, "kv_heads": 1}
    make_untrained_model(len(tokenizer), **sizes, seed=0).save_pretrained(model)
    tokenizer.save_pretrained(model)

    def fill(command):
        return command.format(model=model, text=text_file, runs=runs)

    for seed in "01":
        argv = fill(TRAIN + seed).replace("{place}/run", f"{runs}/{seed}").split()
        assert nursery.run(argv, runs)["status"] == 0, nursery.said()
    traced = fill(ONNX % "0").replace("{place}", f"{runs}/traced").split()
    assert nursery.run(traced, runs, here=True)["status"] == 0, nursery.said()
    return fill


@pytest.fixture(scope="module")
def counts():
    """What was found, by case; printed at the end."""
    found = {}
    yield found
    table = Table(title=f"{KILLS} kills each, KILLS_SEED={SEED}", title_justify="left")
    table.add_column("command")
    for column in (*PHASES, "old", "new", "finished by a reader",
                   "left unfinished", "wrong"):  # fmt: skip
        table.add_column(column, justify="right")
    for name, count in found.items():
        times = [f"{seconds:.3f}" for seconds in count.seconds.values()]
        states = (count.found["old"], count.found["new"], count.finished, count.left)
        table.add_row(name, *times, *map(str, states), str(len(count.wrong)))
    Console(width=120).print("\n", table)


@pytest.mark.parametrize("name", CASES)
def test_a_killed_command_leaves_the_old_or_the_new_and_no_litter_that_stays(
    name, nursery, places, counts, tmp_path
):
    case = CASES[name]
    filled = replace(case, command=places(case.command), before=places(case.before))
    trial = Trial(nursery, filled, tmp_path)
    counts[name] = trial.count
    trial.kill(KILLS, f"{name} {SEED}", phase=list(CASES).index(name))
    print(name, *(f"{moment}: {found}" for moment, found in trial.count.moments), sep="\n  ")
    assert not trial.count.wrong, "\n".join(trial.count.wrong)
