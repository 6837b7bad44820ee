"""Quantized folders that nobody vouches for: what is said of tensors, and these themselves."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lrqat.importing.run import import_model
from lrqat.importing.sources import open_source
from tests.fuzz.harness import altered_json, fuzz, outcome
from tests.support.imported import state_of
from tests.support.quantized_sources import KINDS, write

ANY = st.data()
QUANTIZED = sorted(name for name in KINDS if KINDS[name].settings)
MODULE = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def source(folder):
    """name of a kind -> its folder, made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = write(KINDS[name], folder / f"source-{len(made)}")[0]
        return made[name]

    return get


def read_all(path):
    opened = open_source(str(path))
    return [opened.read(name) for name in opened.shapes]


@fuzz(6)
@given(data=ANY)
def test_quantization_configs(source, folder, data):
    name = data.draw(st.sampled_from(QUANTIZED))
    copy = shutil.copytree(source(name), folder / "config", dirs_exist_ok=True)
    config = json.loads((copy / "config.json").read_text())
    said = {"quantization_config": config.pop("quantization_config")}
    config |= data.draw(altered_json([said]))
    (copy / "config.json").write_text(json.dumps(config))
    outcome(lambda: read_all(copy))


@fuzz(4)
@given(data=ANY)
def test_settings_in_files_of_their_own(source, folder, data):
    """As older versions of the libraries wrote them."""
    copy = folder / "beside"
    file, name = data.draw(
        st.sampled_from(
            [
                ("quantize_config.json", "GPTQ"),
                ("quant_config.json", "AWQ"),
                ("hf_quant_config.json", "ModelOpt"),
            ]
        )
    )
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source(name), copy)
    config = json.loads((copy / "config.json").read_text())
    said = config.pop("quantization_config")
    (copy / "config.json").write_text(json.dumps(config))
    nested = {"quantization": {"quant_algo": said.pop("quant_algo", None)}}
    (copy / file).write_text(json.dumps(data.draw(altered_json([said | nested]))))
    outcome(lambda: read_all(copy))


TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32,
         torch.int16, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn]  # fmt: skip
FILLS = [0.0, -1.0, 1.0, 127.0, 1e30, -1e30, 2.0**-140, float("nan"), float("inf")]
# By what is done to a tensor: how, and with what.
EDITS = {
    "another type": (lambda value, dtype: value.to(dtype), st.sampled_from(TYPES)),
    "one number": (
        lambda value, new: torch.full(value.shape, new).to(value.dtype), st.sampled_from(FILLS)
    ),
    "a number at the end": (lambda value, new: _with_last(value, new), st.sampled_from(FILLS)),
    "one octet": (
        lambda value, octet: torch.full((value.nbytes,), octet, dtype=torch.uint8)
        .view(value.dtype)
        .view(value.shape),
        st.integers(0, 255),
    ),
    "flat": (lambda value, _: value.flatten(), st.none()),
    "turned": (lambda value, _: value.movedim(0, -1) if value.ndim else value, st.none()),
    "deeper": (lambda value, _: value[None], st.none()),
    "fewer rows": (lambda value, n: value[n:] if value.ndim else value, st.integers(0, 3)),
    "narrower": (lambda value, n: value[..., :n] if value.ndim else value, st.integers(0, 40)),
    "twice": (lambda value, _: torch.cat([value, value], -1) if value.ndim else value, st.none()),
    "a number alone": (lambda value, _: value.flatten()[:1].reshape(()), st.none()),
    "gone": (lambda value, _: None, st.none()),
}  # fmt: skip


def _with_last(value, new):
    changed = value.flatten().clone()
    changed[-1:] = torch.tensor(new).to(value.dtype)
    return changed.view(value.shape)


_CHOSEN = st.sampled_from(sorted(EDITS)).flatmap(
    lambda edit: st.tuples(st.just(edit), EDITS[edit][1], st.integers(0, 9), st.integers(0, 40))
)


def altered(state, edits):
    """The tensors of a folder, with some of a module of another form, content or name."""
    parts = sorted(name for name in state if name.startswith(MODULE))
    changed = dict(state)
    for edit, argument, which, name in edits:
        part = parts[which % len(parts)]
        value = changed.pop(part, None)
        new = None if value is None else EDITS[edit][0](value, argument)
        if new is not None:
            changed[parts[name] if name < len(parts) else part] = new
    return {name: value.clone().contiguous() for name, value in changed.items()}


def altered_copy(source, folder, data):
    name = data.draw(st.sampled_from(sorted(KINDS)))
    copy = folder / f"tensors-{sorted(KINDS).index(name)}"
    if not copy.exists():
        shutil.copytree(source(name), copy)
    state = altered(state_of(source(name)), data.draw(st.lists(_CHOSEN, min_size=1, max_size=2)))
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@fuzz(8)
@given(data=ANY)
def test_tensors_of_quantized_folders(source, folder, data):
    copy = altered_copy(source, folder, data)
    outcome(lambda: read_all(copy))


@fuzz(2)
@given(data=ANY)
def test_imports_from_end_to_end(source, folder, data):
    copy = altered_copy(source, folder, data)
    outcome(lambda: import_model(str(copy), folder / "imported", overwrite=True))
