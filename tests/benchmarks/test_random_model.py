"""Random models in the shape of real ones."""

import json

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from benchmarks import random_model
from benchmarks.memory_probe import TensorCounter
from benchmarks.random_checkpoint import write_random_model
from lrqat.errors import OutputError, UserError
from lrqat.models import hub


def test_the_command_writes_what_from_pretrained_reads(tmp_path, capfd):
    folder = tmp_path / "model"
    arguments = ["--like", "tiny", "--output", str(folder), "--layers", "3", "--json"]
    assert random_model.main(arguments) == 0
    count = json.loads(capfd.readouterr().out)["weights"]
    model = hub.load_model(str(folder), dtype=torch.bfloat16)
    assert model.config.num_hidden_layers == 3
    assert count == sum(p.numel() for p in model.parameters())
    weight = model.model.layers[1].mlp.up_proj.weight
    assert weight.float().std().item() == pytest.approx(0.02, rel=0.05)
    assert (model.model.norm.weight == 1).all()
    with pytest.raises(OutputError, match="exists"):
        random_model.main(arguments)


def test_one_shard_is_in_memory(tmp_path):
    config = LlamaConfig(**random_model.SHAPES["tiny"] | {"num_hidden_layers": 12})
    with TensorCounter() as counter:
        count = write_random_model(config, tmp_path, shard_bytes=1 << 18)
    assert len(list(tmp_path.glob("*.safetensors"))) > 10
    assert counter.peak < 2 * count / 3


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_written_once(tmp_path, tied):
    config = GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=tied)
    write_random_model(config, tmp_path, dtype=torch.float32, seed=3)
    model = hub.load_model(str(tmp_path), dtype=torch.float32)
    head, embedding = model.lm_head.weight, model.transformer.wte.weight
    assert (head is embedding) == tied
    assert (model.transformer.h[0].attn.c_attn.bias == 0).all()
    again = tmp_path / "again"
    write_random_model(config, again, dtype=torch.float32, seed=3)
    same = hub.load_model(str(again), dtype=torch.float32).transformer.wte.weight
    assert torch.equal(embedding, same)


@pytest.mark.parametrize("arguments", [["--layers", "0"], ["--shard-mb", "0"], ["--like", "x"]])
def test_bad_arguments(tmp_path, arguments):
    with pytest.raises(UserError, match=arguments[0]):
        random_model.main(["--output", str(tmp_path / "model"), *arguments])
