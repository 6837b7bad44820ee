"""Files whose tensors are not the model's: refused by every reader, with the cure."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrqat.errors import ModelError
from lrqat.models import hub
from lrqat.models.preparation import Settings
from lrqat.models.stored_model import open_model
from lrqat.models.streaming import load_streamed
from lrqat.models.surgery import plan_surgery
from lrqat.models.tying import is_tied
from lrqat.runtimes.targets import open_target
from lrqat.training.config import TrainConfig
from lrqat.training.plan import plan_training
from tests.support.zoo import MODELS, TIED, make, make_from, small_llama

NORM = "model.norm.weight"
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_from(small_llama()).save_pretrained(folder)
    return folder


@pytest.fixture
def changed(saved, tmp_path):
    """Function of a change to the tensors -> folder of the changed model."""

    def make(change, **config):
        folder = shutil.copytree(saved, tmp_path / "changed")
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(said | config))
        return folder

    return make


def prefixed(prefix):
    return lambda tensors: {f"{prefix}{name}": value for name, value in tensors.items()}


def without(*parts):
    return lambda tensors: {n: v for n, v in tensors.items() if not any(p in n for p in parts)}


def quantized(tensors):
    scales = {f"{UP}.weight_scale_inv": torch.tensor([[0.001]])}
    return tensors | {f"{UP}.weight": tensors[f"{UP}.weight"].to(torch.float8_e4m3fn)} | scales


def with_adapter(tensors):
    found = {f"base_model.model.{name}": value for name, value in tensors.items()}
    weight = found.pop(f"base_model.model.{UP}.weight")
    return found | {
        f"base_model.model.{UP}.base_layer.weight": weight,
        f"base_model.model.{UP}.lora_A.default.weight": torch.ones(2, 64),
        f"base_model.model.{UP}.lora_B.default.weight": torch.ones(96, 2),
    }


def classifier(tensors):
    return without("lm_head")(tensors) | {"score.weight": torch.ones(2, 64)}


def with_biases(tensors):
    return tensors | {f"model.layers.{i}.mlp.down_proj.bias": torch.ones(64) for i in (0, 1)}


def with_third_layer(tensors):
    last = {name: value for name, value in tensors.items() if ".layers.1." in name}
    return tensors | {name.replace(".1.", ".2."): value.clone() for name, value in last.items()}


MISFITS = {
    "a weight is missing": (without(f"{UP}.weight"), [f"{UP}.weight", "1 tensor is missing"]),
    "torch.compile": (prefixed("_orig_mod."), ["_orig_mod.", "torch.compile", "Remove"]),
    "DataParallel": (prefixed("module."), ["'module.'", "DataParallel"]),
    "another prefix": (prefixed("student.net."), ["'student.net.'", "remove that"]),
    "an adapter": (with_adapter, ["lora_A", "merge_and_unload"]),
    "fp8 with scales": (quantized, [f"{UP}.weight_scale_inv", "floating-point original"]),
    "a classifier": (classifier, ["score.weight", "lm_head.weight", "another task"]),
    "biases": (with_biases, ["layers.0.mlp.down_proj.bias", "mlp_bias"]),
    "further layers": (with_third_layer, ["layers.2.", "num_hidden_layers is 2"]),
    "no head": (without("lm_head"), ["lm_head.weight", "tie_word_embeddings"]),
    "another shape": (lambda t: t | {NORM: torch.ones(3)}, [NORM, "(3,)", "(64,)"]),
}


def readers(folder):
    """Everything that reads other people's weights."""
    plan = plan_surgery(hub.meta_model(hub.load_config(str(folder))), "q8_0")
    config = {"data": __file__, "output": "unused", "grid": "q8_0", "sequence_length": 16}
    evaluated = {"context": 16}
    yield "load", lambda: hub.load_model(str(folder), dtype=torch.float32)
    yield "stream", lambda: load_streamed(str(folder), plan, Settings(), dtype=torch.float32)
    yield (
        "plan",
        lambda: plan_training(TrainConfig(model=str(folder), **config, **evaluated, rank=4)),
    )
    yield "evaluate", lambda: open_target(str(folder), **evaluated).__enter__()


@pytest.mark.parametrize("misfit", MISFITS)
def test_tensors_that_are_not_the_models_are_refused_with_the_cure(changed, misfit):
    change, said = MISFITS[misfit]
    for reader, read in readers(changed(change)):
        with pytest.raises(ModelError) as caught:
            read()
        for words in said:
            assert words in str(caught.value), reader


def test_a_teacher_is_looked_at_before_anything_is_done(saved, changed):
    teacher = changed(prefixed("_orig_mod."))
    config = {"data": __file__, "output": "unused", "grid": "q8_0", "rank": 4}
    with pytest.raises(ModelError, match=r"torch\.compile"):
        plan_training(TrainConfig(model=str(saved), teacher=str(teacher), **config))


def test_pickled_weights_are_refused_too(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "pickled")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(prefixed("_orig_mod.")(tensors), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"torch\.compile"):
        hub.load_model(str(folder), dtype=torch.float32)


def test_what_transformers_leaves_out_on_purpose_is_named(changed):
    extra = "model.layers.0.self_attn.rotary_emb.inv_freq"
    folder = changed(lambda tensors: tensors | {extra: torch.ones(8)})
    (note,) = open_model(str(folder)).notes
    assert extra in note
    hub.load_model(str(folder), dtype=torch.float32)


def test_a_whole_model_has_nothing_to_say(saved):
    stored = open_model(str(saved))
    assert stored.notes == ()
    assert stored.weights is not None


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", [NORM, "model.embed_tokens.weight", f"{UP}.weight"])
def test_a_number_that_is_not_finite_is_found_before_training(changed, name, value):
    def damage(tensors):
        tensors[name].view(-1)[5] = value
        return tensors

    folder = changed(damage)
    plan = plan_surgery(hub.meta_model(hub.load_config(str(folder))), "q8_0")
    for load in (
        lambda: hub.load_model(str(folder), dtype=torch.float32),
        lambda: load_streamed(str(folder), plan, Settings(rank=4), dtype=torch.float32),
    ):
        with pytest.raises(ModelError, match=rf"{name} holds NaN or infinity"):
            load()


def test_numbers_beyond_float16_are_said(changed):
    folder = changed(lambda tensors: tensors | {NORM: tensors[NORM] * 1e6})
    with pytest.raises(ModelError, match=r"model\.norm\.weight .*--dtype float32"):
        hub.load_model(str(folder), dtype=torch.float16)


def test_float64_that_float32_rounds_is_said(changed):
    folder = changed(lambda tensors: {n: v.double() for n, v in tensors.items()})
    assert open_model(str(folder)).notes == ()  # every value is a float32
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[NORM] += 1e-12
    save_file(tensors, path, metadata={"format": "pt"})
    (note,) = open_model(str(folder)).notes
    assert NORM in note
    assert "float32 rounds" in note


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_saves_fits(name, tmp_path):
    model = make(name)
    model.save_pretrained(tmp_path)
    stored = open_model(str(tmp_path))
    assert stored.notes == ()
    assert is_tied(stored.skeleton) == is_tied(model) == (name in TIED)
    assert is_tied(hub.load_model(str(tmp_path), dtype=torch.float32)) == (name in TIED)
