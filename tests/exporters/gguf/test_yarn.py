"""YaRN in GGUF: the keys that say it, and what llama.cpp's graph does not compute as transformers.

That it computes the rest is in runtime_tests/test_gguf_architectures.py.
"""

import numpy as np
import pytest
from transformers import Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from exporters.gguf.architectures import find_architecture
from exporters.gguf.graph.hyperparameters import hyperparameters, refusals
from lrqat.errors import CheckpointError
from tests.support.zoo import EXTENDED, HEAD_DIM, YARN_ROPE

QWEN3 = HEAD_DIM | EXTENDED | {"architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu"}
QWEN3 |= {"rms_norm_eps": 1e-6}
GEMMA3 = {"architectures": ["Gemma3ForCausalLM"], "hidden_act": "gelu_pytorch_tanh"}
GEMMA3 |= {"query_pre_attn_scalar": 16, "tie_word_embeddings": True}


def config_of(**changes):
    return QWEN3 | {"rope_parameters": YARN_ROPE | changes}


def said(config):
    found = hyperparameters(find_architecture(config), config)
    return {e.key.partition(".rope.")[2]: e.value for e in found if ".rope." in e.key}


SAID = {
    "dimension_count": 16, "freq_base": 10000.0, "scaling.type": "yarn", "scaling.factor": 4.0,
    "scaling.original_context_length": 64, "scaling.yarn_beta_fast": 32.0,
    "scaling.yarn_beta_slow": 1.0,
}  # fmt: skip


def test_the_keys():
    assert said(config_of()) == SAID
    assert said(config_of(beta_fast=None, beta_slow=1, truncate=True)) == SAID
    assert said(config_of(factor=None)) == SAID, "as transformers: the ratio of the contexts"
    older = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert said(QWEN3 | {"rope_theta": 10000.0, "rope_scaling": older}) == SAID
    beside = config_of() | {"original_max_position_embeddings": 32}
    assert said(beside)["scaling.original_context_length"] == 32
    without = {k: v for k, v in YARN_ROPE.items() if not k.startswith("original")}
    assert said(QWEN3 | {"rope_parameters": without})["scaling.original_context_length"] == 256


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"factor": 1.0},
        {"attention_factor": 0.5},
        {"mscale": 0.7, "mscale_all_dim": 1.5},
        {"mscale": 0.7},
        {"mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": None},
        {"mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 1.2, "factor": 8.0},
    ],
)
def test_the_attention_factor_is_that_of_transformers(changes):
    rope = YARN_ROPE | changes
    _, expected = ROPE_INIT_FUNCTIONS["yarn"](Qwen3Config(**HEAD_DIM, rope_parameters=rope))
    beyond = said(config_of(**changes)).get("scaling.attn_factor", 1.0)
    own = 1 + 0.1 * np.log(rope["factor"])  # what llama.cpp computes from the factor
    assert beyond * own == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"beta_fast": 16}, "beta_fast is 16; llama.cpp's graph has 32"),
        ({"beta_slow": 2.0}, "beta_slow is 2.0; llama.cpp's graph has 1"),
        ({"truncate": False}, "truncate is false"),
        ({"truncate": None}, "truncate is false"),
        ({"original_max_position_embeddings": 4}, "is empty"),
        # pair 1 turns once in 2 pi times the base's eighth root
        ({"rope_theta": 1000.0, "original_max_position_embeddings": 201062}, "too near a whole"),
        ({"partial_rotary_factor": 0.5}, "0.5 of a head"),
    ],
)
def test_what_the_graph_does_not_compute_is_refused(changes, reason):
    config = config_of(**changes)
    assert reason in " ".join(refusals(find_architecture(config), config))


def test_gemmas_sliding_layers_would_get_an_attention_factor_too():
    local = {"rope_type": "default", "rope_theta": 10000.0}
    for factor, refused in ((None, False), (1.1, True)):
        rope = {"full_attention": YARN_ROPE | {"attention_factor": factor}}
        config = QWEN3 | GEMMA3 | {"rope_parameters": rope | {"sliding_attention": local}}
        found = refusals(find_architecture(config), config)
        assert any("sliding layers would get" in reason for reason in found) == refused


@pytest.mark.parametrize(
    "changes",
    [
        {"factor": "x"},
        {"factor": 0},
        {"rope_theta": 1.0},
        {"attention_factor": -1},
        {"mscale": "x", "mscale_all_dim": 1.0},
        {"original_max_position_embeddings": 1.5},
    ],
)
def test_configurations_that_make_no_sense(changes):
    config = config_of(**changes)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        (
            refusals(find_architecture(config), config),
            hyperparameters(find_architecture(config), config),
        )
