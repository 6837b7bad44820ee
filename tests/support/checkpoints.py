"""Fused checkpoints of tiny random models: projections on Q4_0, embedding and head on Q8_0."""

import torch

from lrqat.checkpoint.reader import Checkpoint
from lrqat.models import fuse, preparation, surgery
from lrqat.models.small_llama import make_tokenizer
from tests.support.zoo import CONFIGS, VOCABULARY, make_from

TEXT = "some text to make merges of, and more of it still\n" * 40
# A part of the last layer, of every kind: linear, Conv1D, experts.
KEPT = r"\.1\.(mlp|attn)\.(down_proj|c_attn|experts\.gate_up_proj)"
TRAINED = {"embed_tokens|wte|embed_in": "q8_0", "lm_head|embed_out": "q8_0"}


def fused(
    config, folder, *, grid="q4_0", keep=(KEPT,), grid_for=None, tokenizer=None, dtype="float32",
    change=lambda model: model,
):  # fmt: skip
    """The checkpoint of a random model of a configuration, or its name, in `dtype`.

    `change` is made to the model before; its A are moved at random.
    """
    model = change(make_from(CONFIGS[config]() if isinstance(config, str) else config))
    model = model.to(getattr(torch, dtype)).float()
    plan = surgery.plan_surgery(model, grid, keep, TRAINED if grid_for is None else grid_for)
    preparation.prepare(model, plan, preparation.Settings(rank=4, range_init="minmax"))
    for _, layer in preparation.quantized_layers(model):
        torch.nn.init.normal_(layer.lora_a, std=layer.grid.q_max / 64)
    tokenizer = tokenizer or make_tokenizer([TEXT], vocabulary=VOCABULARY)
    base = {"name": "tiny", "revision": None, "dtype": dtype}
    fuse.fuse(model, tokenizer, folder, plan=plan, base_model=base)
    return Checkpoint.open(folder)
