"""Both exports of a checkpoint, and what a proof of them has to say."""

from exporters import gguf, onnx
from lrqat.checkpoint.reader import Checkpoint
from tests.support.onnx_exports import write_onnx


def export_both(folder):
    """The GGUF file and the ONNX folder, beside the checkpoint, as strings."""
    checkpoint = Checkpoint.open(folder)
    paths = folder / gguf.default_name(checkpoint), folder / onnx.default_name(checkpoint)
    gguf.write(gguf.plan(checkpoint), paths[0])
    write_onnx(onnx.plan(checkpoint), paths[1])
    return [str(path) for path in paths]


def assert_proved(proofs):
    for proof in proofs:
        assert proof.mismatches == {}
        assert proof.tensors > 0
        assert proof.logit_difference < 1e-4
        assert proof.same_tokens
        assert proof.verdicts == {"L0": True, "L1": True, "L2": True}, proof.failures
        assert proof.passed
    by_runtime = {proof.runtime: proof.comparison for proof in proofs}
    assert abs(by_runtime["ONNX Runtime"].relative_difference) <= 1e-6
    llama = by_runtime["llama.cpp"]
    assert abs(llama.relative_difference) <= 5e-3
    assert llama.standard_errors <= 3
    assert llama.kl < 2e-3
