"""Models that cannot be loaded for a reason that their files tell better than transformers does."""

import json
import shutil

import pytest

from lrqat.errors import ModelError, first_line
from lrqat.models import causes, hub
from lrqat.models.stored_model import open_model


def altered_config(folder, target, **changes):
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """What PEFT saves, with a tokenizer."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    shutil.copy(tiny_model / "tokenizer.json", folder)
    (folder / "adapter_model.safetensors").touch()
    values = {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def test_an_adapter_is_named_with_its_base_and_how_to_merge_it(adapter):
    said = "it is a PEFT adapter of the model 'owner/base', not a whole model; give the model"
    with pytest.raises(ModelError, match=said):
        hub.load_config(str(adapter))


def test_an_adapter_that_brings_the_configuration_of_its_base_is_named_in_a_dry_run(
    adapter, tiny_model
):
    shutil.copy(tiny_model / "config.json", adapter)
    with pytest.raises(ModelError, match="PEFT adapter of the model 'owner/base'"):
        open_model(str(adapter))


def test_an_adapter_on_the_hub_is_named(adapter, monkeypatch):
    def missing(name, file):
        raise OSError(f"{name} does not appear to have a file named {file}")

    monkeypatch.setattr(hub, "cached_file", missing)
    monkeypatch.setattr(
        causes, "find_adapter_config_file", lambda name: adapter / "adapter_config.json"
    )
    with pytest.raises(
        ModelError, match="cannot load the model 'owner/lora': it is a PEFT adapter"
    ):
        hub.load_config("owner/lora")


def test_a_model_with_code_of_its_own_is_told_the_option(tiny_model, tmp_path):
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}
    folder = altered_config(tiny_model, tmp_path / "own", model_type="mystery", auto_map=own)
    with pytest.raises(ModelError, match=r"Python code of its own .* give --trust-remote-code to"):
        hub.load_config(str(folder))


def test_a_tokenizer_with_code_of_its_own_is_told_the_option(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "own")
    values = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"the tokenizer of .* give --trust-remote-code to"):
        hub.load_tokenizer(folder)


def test_a_folder_without_a_tokenizer_is_told_which_files_were_looked_for(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"looked for tokenizer[.]json") as refused:
        hub.load_tokenizer(folder)
    assert "copy tokenizer.json and tokenizer_config.json from" in str(refused.value)


def test_a_damaged_tokenizer_is_not_called_missing(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "damaged")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot load the tokenizer") as refused:
        hub.load_tokenizer(folder)
    assert "looked for" not in str(refused.value)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("no backend from one of: \n(1) a file, \n(2) a slow one or \n(3) a class. \nYou need x.",
         "no backend from one of: (1) a file, (2) a slow one or (3) a class."),
        ("errors for 'x':\n  must be an int\nmore", "errors for 'x': must be an int"),
        ("one of:\na,", "one of: a,"),
        ("nothing behind it:", "nothing behind it:"),
        ("plain,\nsecond", "plain,"),
    ],
)  # fmt: skip
def test_a_list_that_a_message_announces_is_told_to_its_end(message, told):
    assert first_line(ValueError(message)) == told
