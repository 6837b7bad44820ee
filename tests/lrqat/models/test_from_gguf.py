"""A GGUF file as the base model: the model that it holds, or a refusal."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from transformers import AutoModelForCausalLM

from exporters.gguf.file.header import GgufFileError
from lrqat.cli import plan, train
from lrqat.errors import ModelError
from lrqat.models import hub, kept_folders
from lrqat.models.from_gguf import folder as gguf_folder
from lrqat.models.stored_model import open_model
from lrqat.models.streaming import read_generation_config
from tests.support.gguf_bases import gguf_of
from tests.support.zoo import CONFIGS

READ = [
    "llama", "llama, biases", "llama, tied", "llama, head_dim", "llama, linear rope", "llama, yarn",
    "qwen2", "qwen3", "qwen3, yarn", "gemma2", "gemma3", "gemma3, six layers", "granite", "smollm3",
    "olmo2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def stored_in(checkpoint):
    """The exported values by parameter, float32."""
    trained = {
        f"{n}.weight": checkpoint.quantized(n).dequantize() for n in checkpoint.quantized_names
    }
    rest = {n: np.asarray(checkpoint.floating(n), np.float32) for n in checkpoint.floating_names}
    return trained | rest


@pytest.mark.parametrize("name", READ)
def test_the_model_is_the_one_that_was_exported(name, tmp_path):
    checkpoint, path = gguf_of(name, tmp_path)
    made = hub.load_model(str(path), dtype=torch.float32)
    parameters = {n: t for n, t in made.state_dict().items() if n in stored_in(checkpoint)}
    for parameter, value in parameters.items():
        right = torch.from_numpy(stored_in(checkpoint)[parameter]).bfloat16().float()
        assert torch.equal(value, right), parameter
    assert len(parameters) > 15
    # With the exported model's own configuration: equal logits prove ours.
    model = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    model.load_state_dict(made.state_dict())
    ids = torch.arange(1, 41).view(1, 40)
    with torch.no_grad():
        assert torch.equal(made(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", ["llama, tied", "qwen2"])
def test_the_weights_are_those_that_transformers_reads(name, tmp_path):
    _, path = gguf_of(name, tmp_path, dtype="bfloat16")
    ours = hub.load_model(str(path), dtype=torch.bfloat16).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.bfloat16
    ).state_dict()
    assert ours.keys() == theirs.keys()
    for parameter, value in theirs.items():
        assert torch.equal(ours[parameter], value), parameter


def test_frequencies_of_llama_3_are_told_from_their_tensor(tmp_path):
    config = CONFIGS["llama, llama3 rope"]()
    config.rope_parameters["original_max_position_embeddings"] = 8192
    config.rope_parameters["rope_theta"] = 500000.0
    config.max_position_embeddings = 131072
    _, path = gguf_of(config, tmp_path)
    found = hub.load_config(str(path)).rope_parameters
    assert found == config.rope_parameters


def test_further_ends_of_text_are_kept(tiny, tmp_path):
    path = rewritten(tiny, tmp_path / "chat.gguf", change=[("tokenizer.ggml.eot_token_id", 7)])
    made = hub.load_model(str(path), dtype=torch.bfloat16)
    assert made.generation_config.eos_token_id == [0, 7]
    skeleton = open_model(str(path)).skeleton  # as a plan and a streamed run have it
    read_generation_config(skeleton, str(path))
    assert skeleton.generation_config.eos_token_id == [0, 7]


@pytest.fixture
def tiny(tmp_path):
    return gguf_of("llama, tied", tmp_path)[1]


def rewritten(path, target, *, change=(), leave_out=(), tensors=lambda name, data: data):
    """A copy of a file with other metadata and tensors."""
    reader = GGUFReader(path)
    writer = GGUFWriter(target, "llama")
    for key, value in change:
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    named = {key for key, _ in change}
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in {"general.architecture", *named}:
            continue
        if field.name not in leave_out:
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        data = tensors(tensor.name, tensor.data)
        if data is not None:
            writer.add_tensor(tensor.name, np.asarray(data), raw_dtype=tensor.tensor_type)
    if tensors("extra", None) is not None:
        writer.add_tensor("extra", tensors("extra", None))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file):
        step()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"change": [("llama.logit_scale", 2)]}, "says llama.logit_scale = 2, which is not under"),
        ({"change": [("llama.rope.scaling.type", "longrope")]}, "llama.rope.scaling.type = longr"),
        ({"change": [("llama.embedding_length", 128)]}, "has the shape"),
        ({"change": [("llama.block_count", 3)]}, r"tensor blk\.2\..* is missing; give the"),
        ({"change": [("llama.block_count", 1)]}, r"tensor blk\.1\..* is not the model's"),
        ({"change": [("llama.block_count", 2**31)]}, "layers, more than any model has"),
        ({"leave_out": ["llama.embedding_length"]}, "embedding_length = None, and a number is"),
        (
            {
                "tensors": lambda name, data: (
                    np.ones((2, 32), np.float32) if name == "extra" else data
                )
            },
            "the tensor extra is not the model's",
        ),
    ],
)
def test_a_file_that_is_not_understood_is_refused(tiny, tmp_path, changes, match):
    path = rewritten(tiny, tmp_path / "other.gguf", **changes)
    with pytest.raises(ModelError, match=match):
        open_model(str(path))
    assert not list(kept_folders.cache("gguf").glob("other-*"))


def test_a_file_that_is_damaged_is_refused(tiny, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:-100])
    with pytest.raises(GgufFileError, match="cut off"):
        open_model(str(cut))
    with pytest.raises(ModelError, match=r"no GGUF file at .*none\.gguf; check the path"):
        open_model(str(tmp_path / "none.gguf"))
    writer = GGUFWriter(tmp_path / "bert.gguf", "bert")
    writer.add_tensor("token_embd.weight", np.ones((2, 32), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file):
        step()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="architecture bert, which is not read from GGUF"):
        open_model(str(tmp_path / "bert.gguf"))


def test_a_file_is_read_once_and_again_when_it_changes(tiny, tmp_path):
    first = gguf_folder.model_folder(tiny)
    assert gguf_folder.model_folder(tiny) == first
    rewritten(tiny, tmp_path / "again.gguf", change=[("llama.context_length", 64)])
    shutil.move(tmp_path / "again.gguf", tiny)
    assert gguf_folder.model_folder(tiny) != first
    assert hub.load_config(str(tiny)).max_position_embeddings == 64


@pytest.fixture
def arguments(tiny, text_file, tmp_path):
    settings = "--grid q8_0 --method rtn --steps 1 --context 64 --eval-windows 2 --batch-size 1"
    given = ["--model", tiny, "--data", text_file, "--output", tmp_path / "out"]
    return [*map(str, given), *settings.split(), "--sequence-length", "64"]


def test_a_run_starts_from_a_file(arguments, tmp_path, tiny, capsys):
    assert train.main(arguments) == 0
    said = capsys.readouterr()
    assert "tiny.gguf: 20 tensors of" in said.err
    assert "dequantised to bfloat16" in said.err
    recorded = json.loads((tmp_path / "out" / "lrqat.json").read_text())
    assert recorded["base_model"] == {"name": "tiny.gguf", "revision": None, "dtype": "bfloat16"}
    ours = hub.load_tokenizer(tmp_path / "out")
    assert ours("some text")["input_ids"] == hub.load_tokenizer(tiny)("some text")["input_ids"]


def test_grids_are_planned_for_a_file(tiny, text_file, capsys):
    given = [str(tiny), "--data", str(text_file), "--target-bits", "6"]
    assert plan.main(given) == 0
    assert "tiny.gguf: 20 tensors of" in capsys.readouterr().out


def test_the_tokenizer_may_be_given(arguments, tiny, tmp_path, tiny_model):
    own = hub.load_tokenizer(tiny)
    own.save_pretrained(tmp_path / "tokenizer")
    bare = rewritten(tiny, tmp_path / "bare.gguf", change=[("tokenizer.ggml.pre", "unheard-of")])
    arguments[1] = str(bare)
    with pytest.raises(ModelError, match=r"pre-tokenizer unheard-of, .* give --tokenizer FOLDER"):
        train.main(arguments)
    assert train.main([*arguments, "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    with pytest.raises(ModelError, match="give the tokenizer that the model was trained with"):
        train.main([*arguments, "--tokenizer", str(tiny_model), "--overwrite"])


def test_every_type_is_dequantised_as_ggml_does(tmp_path):
    """The types that gguf knows; of the others our own, which are held against llama.cpp."""
    for grid, kind in (("q4_0", "Q4_0"), ("q5_1", "Q5_1"), ("q2_0", "Q2_0")):
        _, path = gguf_of("llama", tmp_path / grid, grid=grid, keep=())
        made = hub.load_model(str(path), dtype=torch.bfloat16).model.layers[0].mlp.up_proj.weight
        assert torch.isfinite(made).all()
        if kind in gguf.GGMLQuantizationType.__members__:
            tensor = next(t for t in GGUFReader(path).tensors if t.name == "blk.0.ffn_up.weight")
            right = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
            assert torch.equal(made, right.bfloat16())
