"""What is measured of the inputs where a file of importance says most of it."""

import torch

from lrqat.init.imatrix_file import llama_cpp_names
from lrqat.models.preparation_settings import Settings
from lrqat.models.small_llama import make_untrained_model
from lrqat.models.surgery import plan_surgery
from lrqat.training.calibration import measure_inputs
from tests.support.imatrix import write_gguf


def test_a_tied_embedding_is_measured_where_the_file_has_projections_alone(tmp_path):
    sizes = {"hidden": 64, "intermediate": 64, "layers": 1, "heads": 2, "kv_heads": 1}
    model = make_untrained_model(96, **sizes, seed=0, tied=True).eval()
    plan = plan_surgery(model, "q4_0", embedding_and_head="iq4_nl")
    layers = [name for name, target in plan.quantized.items() if target.is_layer]
    entries = {
        f"{llama_cpp_names(n)[0]}.weight": ([[float(i + 1)] * plan.quantized[n].shape[1]], [1.0])
        for i, n in enumerate(layers)
    }
    imatrix = write_gguf(tmp_path / "imatrix.gguf", entries)
    batches = list(torch.randint(0, 96, (4, 2, 32), generator=torch.manual_seed(0)))
    settings = Settings(method="rtn", range_init="importance")
    found = measure_inputs(model, plan, settings, str(imatrix), batches).importance
    for i, name in enumerate(layers):
        assert torch.equal(found[name], torch.full_like(found[name], i + 1))
    measured = measure_inputs(model, plan, settings, None, batches).importance
    assert "model.embed_tokens" in measured
    assert torch.equal(found["model.embed_tokens"], measured["model.embed_tokens"])
    # A model that is never whole cannot be run.
    streamed = measure_inputs(None, plan, settings, str(imatrix), batches).importance
    assert set(streamed) == set(layers)
