"""Trained elsewhere, imported, exported: the runtimes compute the source's own weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrqat.checkpoint.reader import Checkpoint
from lrqat.importing.run import import_model
from lrqat.models.reference import load_reference
from lrqat.runtimes.parity import prove
from tests.support.proofs import assert_proved, export_both


@pytest.mark.slow
def test_weights_of_qat_are_what_both_runtimes_compute(train_on, text, tmp_path):
    trained = load_reference(Checkpoint.open(train_on("q4_0")))
    source = tmp_path / "unquantized"
    trained.to(torch.bfloat16).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((train_on("q4_0") / name).read_bytes())
    report = import_model(str(source), tmp_path / "imported")
    assert sum(each.grid == "q4_0" for each in report.tensors) == 14
    files = export_both(tmp_path / "imported")
    assert_proved(prove(tmp_path / "imported", files, text[:40_000], context=128, limit=8))
    weights = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).state_dict()
    checkpoint = Checkpoint.open(tmp_path / "imported")
    for name in checkpoint.quantized_names:
        made = torch.from_numpy(checkpoint.quantized(name).dequantize()).bfloat16()
        assert torch.equal(made, weights[f"{name}.weight"]), name
