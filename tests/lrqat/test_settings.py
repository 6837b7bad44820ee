"""The settings of a run: one flat object made of groups, and what follows from what."""

import dataclasses

import pytest

from lrqat.cli import train
from lrqat.cli.train_options import config_from
from lrqat.errors import UserError
from lrqat.init.starts import LORA_INITS
from lrqat.models.preparation import Settings
from lrqat.settings import Group, flag, groups_of
from lrqat.training.config import TrainConfig
from lrqat.training.settings import SCALE_RATE, AfterBlocks, ScheduleSettings

GIVEN = {"model": "m", "data": "d", "output": "o"}


def test_every_setting_is_in_one_group_with_a_help_text():
    found = [field for _, fields in groups_of(TrainConfig) for field in fields]
    assert sorted(f.name for f in found) == sorted(f.name for f in dataclasses.fields(TrainConfig))
    assert all(field.metadata["help"] for field in found)
    titles = [title for title, _ in groups_of(TrainConfig)]
    assert len(titles) == len(set(titles)) > 5


def test_help_shows_every_option_in_its_group():
    text = train.build_parser().format_help()
    for title, fields in groups_of(TrainConfig):
        section = text.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        for field in fields:
            assert flag(field.name) in section, title


def test_the_command_gives_what_the_flat_object_gives():
    args = train.build_parser().parse_args(
        [
            "--model",
            "m",
            "--data",
            "d",
            "--output",
            "o",
            "--keep",
            "a",
            "--keep",
            "b",
            "--steps",
            "7",
        ]
    )
    assert config_from(args) == TrainConfig(**GIVEN, keep=("a", "b"), steps=7)


@pytest.mark.parametrize(
    ("given", "starts"),
    [
        ({}, ("importance", "random")),
        ({"stages": "model"}, ("importance", "error")),
        ({"grid": "q5_0"}, ("importance", "error")),
        ({"streamed": True, "stages": "blocks"}, ("importance", "random")),
        ({"streamed": True}, ("l2", "random")),
        ({"streamed": True, "imatrix": "x"}, ("importance", "random")),
        ({"range_init": "minmax", "lora_init": "inputs"}, ("minmax", "inputs")),
    ],
)
def test_starts_and_their_rate_follow_from_what_can_be_measured(given, starts):
    config = TrainConfig(**GIVEN, **given).resolved()
    assert (config.range_init, config.lora_init) == starts
    of_start = LORA_INITS[starts[1]].learning_rate
    assert config.rates["low_rank"] == (AfterBlocks.LOW_RANK if config.by_blocks else of_start)
    assert config.rates["scale"] == (AfterBlocks.SCALE if config.by_blocks else SCALE_RATE)
    assert TrainConfig(**GIVEN, **given, learning_rate=0.5).resolved().learning_rate == 0.5
    assert config.resolved() == config


@pytest.mark.parametrize(("grid", "rate"), [("q2_0", 2e-3), ("tq2_0", 2e-3), ("q4_0", 7e-4)])
def test_scales_of_2_bits_learn_faster_after_blocks(grid, rate):
    given = GIVEN | {"grid": grid, "stages": "blocks,model"}
    assert TrainConfig(**given).resolved().scale_learning_rate == rate


def test_settings_are_recorded_as_they_are_used():
    recorded = TrainConfig(**GIVEN, stages="model", setting="4-8-4", grid_for=("a=q8_0",)).to_json()
    assert recorded["setting"] == "4-8-4"
    assert (recorded["activations"], recorded["kv_bits"]) == ("int8-token", 4)
    assert (recorded["range_init"], recorded["lora_init"]) == ("importance", "error")
    assert recorded["learning_rate"] == LORA_INITS["error"].learning_rate
    assert recorded["grid_for"] == ["a=q8_0"]
    again = {k: tuple(v) if isinstance(v, list) else v for k, v in recorded.items()}
    assert TrainConfig(**again).to_json() == recorded


@pytest.mark.parametrize("kind", [Settings, ScheduleSettings, TrainConfig])
def test_settings_cannot_be_changed_afterwards(kind):
    made = kind(**GIVEN) if kind is TrainConfig else kind()
    assert isinstance(made, Group)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.rank = 3
    assert dataclasses.replace(made) == made


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "--rank 0 must be at least 1"),
        ({"alpha": 0.0}, "--alpha 0.0 must be above 0"),
        ({"scale_learning_rate": float("nan")}, "--scale-learning-rate nan must be at least 0"),
        ({"weight_learning_rate": float("inf")}, "--weight-learning-rate inf must be"),
        ({"cross_entropy_weight": -0.1}, "--cross-entropy-weight -0.1 must be between 0 and 1"),
        ({"phi": "bf17"}, "--phi 'bf17' is unknown; did you mean bf16"),
        ({"kv_bits": 3}, "--kv-bits 3 is unknown; .*choose 4, 8"),
    ],
)
def test_a_value_that_its_field_does_not_take_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**GIVEN, **given)
