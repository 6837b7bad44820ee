"""The estimate of time: what is counted, and what is measured on this machine."""

import re
from dataclasses import replace

import pytest
import torch

from lrqat.models.surgery import plan_surgery
from lrqat.training.config import TrainConfig
from lrqat.training.duration import Duration, Work
from lrqat.training.pace import Pace, measure_pace
from lrqat.training.settings import EMBEDDING_AND_HEAD
from tests.support.zoo import make

_GIVEN = {"model": "m", "data": "d", "output": "o", "rank": 4}
_EQUAL = Pace(1e-12, 2e-12, *[1e-9] * 8)


def planned(name="llama", grid="int4-g32"):
    model = make(name)
    return model, plan_surgery(model, grid, embedding_and_head=EMBEDDING_AND_HEAD)


def parts(pace=_EQUAL, windows=3, done=None, **options):
    config = TrainConfig(**_GIVEN | {"teacher": "none", "steps": 10} | options).resolved()
    work = Work.of(*planned())
    return Duration.of(config, work, pace, windows=windows, done=done).parts


def test_the_time_to_come_grows_with_the_work():
    alone = parts(stages="model")
    assert alone.keys() == {"measuring", "steps"}
    assert parts(stages="model", steps=20)["steps"] == pytest.approx(2 * alone["steps"])
    assert parts(stages="model", teacher="self")["steps"] > alone["steps"]
    assert parts(stages="model", gradient_checkpointing=True)["steps"] > alone["steps"]
    assert parts(stages="blocks,model").keys() == {"measuring", "blocks", "steps"}
    assert parts(windows=6)["measuring"] == pytest.approx(2 * parts(windows=3)["measuring"])
    later = parts(stages="blocks,model", done=4)
    assert later.keys() == alone.keys()
    assert later["steps"] == pytest.approx(0.6 * alone["steps"])


def test_steps_are_counted_in_their_own_type_and_measuring_in_float32():
    faster = replace(_EQUAL, product=_EQUAL.product / 2)
    both = {"stages": "blocks,model"}
    assert parts(faster, **both)["measuring"] == parts(**both)["measuring"]
    assert parts(faster, **both)["steps"] < parts(**both)["steps"]
    assert parts(faster, **both)["blocks"] < parts(**both)["blocks"]


def test_products_are_those_that_a_token_meets():
    """All matrices of a dense model; of experts, those that it is sent to."""
    model, plan = planned()
    matrices = [p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    found = Work.of(model, plan)
    assert found.products == found.built == sum(matrices)
    experts, plan = planned("qwen3_moe")
    found = Work.of(experts, plan)
    assert found.products < found.built


@pytest.mark.parametrize("method", ["lr-qat", "full", "lora-then-rtn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pace_of_this_machine_is_measured_without_touching_its_dice(method, dtype):
    _, plan = planned()
    config = TrainConfig(**_GIVEN, method=method).resolved()
    dice = torch.get_rng_state()
    pace = measure_pace(plan, config, dtype=dtype, device="cpu")
    assert torch.equal(torch.get_rng_state(), dice)
    assert 0 < pace.product < 1e-6
    assert 0 < pace.building < 1e-3
    assert pace.value > 0 < pace.logit


def test_what_is_said_is_rounded_and_names_its_unit():
    said = Duration({"blocks": 3601.0, "steps": 2.34, "measuring": 0.2}).line()
    assert said.startswith("about 1 h to come (")
    assert re.findall(r"(\w+) ([\d.]+ \w+|less than 1 s)", said.partition("(")[2]) == [
        ("blocks", "1 h"), ("steps", "2.3 s"), ("measuring", "less than 1 s"),
    ]  # fmt: skip
    assert "about 42 min" in Duration({"steps": 2519.0}).line()
    assert "about 120 h" in Duration({"steps": 120.4 * 3600}).line()
