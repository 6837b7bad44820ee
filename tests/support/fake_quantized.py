"""Fused checkpoints of small Llamas that were 'trained' with fake-quantized activations."""

import torch

from lrqat.activations.kv_cache import quantize_kv_cache
from lrqat.activations.quantizer import attach
from lrqat.activations.ranges import calibrate
from lrqat.activations.table import ACTIVATION_GRIDS
from lrqat.checkpoint.reader import Checkpoint
from lrqat.models import fuse, hub, preparation, surgery
from lrqat.models.small_llama import make_untrained_model

SIZES = {"hidden": 256, "intermediate": 256, "heads": 4, "kv_heads": 2}


def make_rounded(
    tokenizer, folder, *, grid="int4-g32", grid_for=None, activations=(), kv_bits=None
):
    """Write and open one, of one layer.

    `activations` are names of activation grids, or None: the projections take them in turn.
    """
    torch.manual_seed(0)
    model = make_untrained_model(512, layers=1, seed=1, **SIZES)
    plan = surgery.plan_surgery(model, grid, grid_for=grid_for)
    preparation.prepare(model, plan, preparation.Settings(rank=2, range_init="minmax"))
    for _, layer in preparation.quantized_layers(model):
        torch.nn.init.normal_(layer.lora_a, std=2.0)
    text, ranges = [torch.randint(0, 512, (2, 64))], {}
    for i, name in enumerate(plan.quantized if activations else ()):
        chosen = activations[i % len(activations)]
        if chosen is None:
            continue
        rounding = ACTIVATION_GRIDS[chosen]
        if rounding.static:
            ranges = calibrate(model, rounding, [name], text)
        attach(model, rounding, [name], ranges if rounding.static else None)
    if kv_bits:
        quantize_kv_cache(model, kv_bits)
    base = {"name": "rounded", "revision": None, "dtype": "float32"}
    fuse.fuse(model, hub.load_tokenizer(tokenizer), folder, plan=plan, base_model=base)
    return Checkpoint.open(folder)
