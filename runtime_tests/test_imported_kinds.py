"""Trained elsewhere, imported, exported to GGUF and ONNX, for each kind of source.

Weights are the source's own dequantisation, bit for bit, in the checkpoint and in both files (L0),
and both runtimes compute with them what PyTorch does (L1, L2).
"""

import pytest
import torch

from exporters import gguf
from lrqat.checkpoint.reader import Checkpoint
from lrqat.importing.run import import_model
from lrqat.runtimes.parity import prove
from tests.support.checkpoints import TEXT
from tests.support.gguf_bases import gguf_of
from tests.support.imported import weights_of
from tests.support.proofs import assert_proved, export_both
from tests.support.quantized_sources import KINDS, config, experts_config, write


def assert_runtimes_compute(source, wanted, dtype, output):
    import_model(str(source), output)
    checkpoint = Checkpoint.open(output)
    for name, weights in wanted.items():
        assert name.removesuffix(".weight") in checkpoint.quantized_names
        assert torch.equal(weights_of(checkpoint, name).to(dtype), weights), name
    assert_proved(prove(output, export_both(output), TEXT, context=64, limit=2))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_what_others_quantized_is_what_both_runtimes_compute(name, tmp_path):
    source, wanted = write(KINDS[name], tmp_path / "source")
    assert_runtimes_compute(source, wanted, KINDS[name].dtype, tmp_path / "imported")


def test_experts_that_others_quantized_are_what_llama_cpp_computes(tmp_path):
    source, wanted = write(KINDS["GPTQ"], tmp_path / "source", experts_config())
    output = tmp_path / "imported"
    import_model(str(source), output)
    checkpoint = Checkpoint.open(output)
    of_experts = [name for name in wanted if ".experts." in name]
    # Four projections for attention; each expert is one of gate with up, and one of down.
    assert len(checkpoint.quantized_names) == len(wanted) - len(of_experts) // 3
    path = output / gguf.default_name(checkpoint)
    gguf.write(gguf.plan(checkpoint), path)
    (proof,) = prove(output, [str(path)], TEXT, context=64, limit=2)
    assert proof.mismatches == {}
    assert proof.passed, proof.failures


@pytest.mark.slow
def test_a_gguf_file_is_what_both_runtimes_compute(tmp_path):
    first, path = gguf_of(config(), tmp_path, grid="q5_0", keep=())
    wanted = {f"{name}.weight": weights_of(first, f"{name}.weight")
              for name in first.quantized_names}  # fmt: skip
    assert_runtimes_compute(path, wanted, torch.float32, tmp_path / "imported")
