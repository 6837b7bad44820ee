"""What has to be known of a model beyond what transformers says of it: the one table.

Most of it is a rule over all models. It goes by the names that transformers' own code gives to
attributes and modules, so that a new architecture which uses them needs nothing. What is particular
to one architecture is its entry in `ARCHITECTURES`, by config.json's `model_type`.

Needs no torch, so that exporters can read it; what is done with tensors is where the tensors are.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class LogitStep(StrEnum):
    """What a model does with what its output head gives, and a number of its configuration."""

    SOFT_CAP = "cap * tanh(logits / cap)"
    DIVIDE = "logits / number"
    MULTIPLY = "logits * number"


# Attribute of the configuration -> the step, in the order of the steps. Sources: transformers,
# models/ gemma2, gemma3, vaultgemma, nanochat; granite*; cohere, cohere2; falcon_h1, modeling_*.py.
LOGIT_STEPS = {
    "final_logit_softcapping": LogitStep.SOFT_CAP,
    "logits_scaling": LogitStep.DIVIDE,
    "logit_scale": LogitStep.MULTIPLY,
    "lm_head_multiplier": LogitStep.MULTIPLY,
}

# Why a tower of images or sound is left unquantized, and is no part of an exported model.
BESIDE_TEXT = "text never reaches it"

# Names of modules that choose experts: anywhere, and where there are experts beside them.
ROUTERS = frozenset({"router"})
ROUTERS_BESIDE_EXPERTS = frozenset({"gate", "shared_expert_gate"})

# What an embedding module calls the factor that it multiplies its rows by (Gemma, BioGPT). The
# plain number comes first: Gemma's buffer has no value on the meta device.
_EMBEDDING_FACTORS = ("scalar_embed_scale", "embed_scale")

# For those who have a checkpoint and no model, which would know. The head's is the whole name.
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
_OUTPUT_HEADS = ("lm_head", "embed_out")


class Role(StrEnum):
    """What a weight matrix is in its model, by llama.cpp's name of its tensor.

    Source: src/llama-quant.cpp `tensor_get_category`, which knows the same.
    """

    EMBEDDING = "token_embd"
    HEAD = "output"
    QUERY = "attn_q"
    KEY = "attn_k"
    VALUE = "attn_v"
    FUSED_ATTENTION = "attn_qkv"
    ATTENTION_OUTPUT = "attn_output"
    GATE = "ffn_gate"
    UP = "ffn_up"  # and a gate that is in one tensor with it
    DOWN = "ffn_down"
    OTHER = "other"


# Ends of module names; of two that fit the longer counts. Source: gguf's `TensorNameMap`.
_ROLES = {
    "q_proj": Role.QUERY,
    "k_proj": Role.KEY,
    "v_proj": Role.VALUE,
    "qkv_proj": Role.FUSED_ATTENTION,
    "query_key_value": Role.FUSED_ATTENTION,
    "attn.c_attn": Role.FUSED_ATTENTION,
    "o_proj": Role.ATTENTION_OUTPUT,
    "attention.dense": Role.ATTENTION_OUTPUT,
    "self_attention.dense": Role.ATTENTION_OUTPUT,
    "self_attn.dense": Role.ATTENTION_OUTPUT,
    "self_attn.out_proj": Role.ATTENTION_OUTPUT,
    "attn.c_proj": Role.ATTENTION_OUTPUT,
    "gate_proj": Role.GATE,
    "up_proj": Role.UP,
    "gate_up_proj": Role.UP,
    "dense_h_to_4h": Role.UP,
    "mlp.c_fc": Role.UP,
    "mlp.fc1": Role.UP,
    "down_proj": Role.DOWN,
    "dense_4h_to_h": Role.DOWN,
    "mlp.c_proj": Role.DOWN,
    "mlp.fc2": Role.DOWN,
    "mamba.in_proj": Role.OTHER,
    "mamba.out_proj": Role.OTHER,
}


def role_of(module: str) -> Role | None:
    """What the weight of a module, or a stack of experts, is in its model; None: not known."""
    if is_embedding(module):
        return Role.EMBEDDING
    if is_output_head(module):
        return Role.HEAD
    parts = module.split(".")
    return _ROLES.get(".".join(parts[-2:])) or _ROLES.get(parts[-1])


def embedding_factor(embedding: Any) -> float | None:
    """What an embedding module of transformers multiplies its rows by, not yet rounded; or None.

    transformers rounds it to the type of the weight before it multiplies.
    """
    found = (getattr(embedding, name, None) for name in _EMBEDDING_FACTORS)
    return next((float(factor) for factor in found if factor is not None), None)


def is_embedding(module: str) -> bool:
    """Whether this is the name of an input embedding."""
    return module.rpartition(".")[2] in _EMBEDDINGS


def is_output_head(module: str) -> bool:
    """Whether this is the name of an output head."""
    return module in _OUTPUT_HEADS


@dataclass(frozen=True)
class Architecture:
    """What is particular about the models of one `model_type`.

    Attributes:
        transposed: ends of the names of unquantized matrices that lie (in, out) in a Hugging Face
            folder.
        genai_type: what ONNX Runtime GenAI calls it; None: as transformers does. Its list of types
            has no others; one that is not on it but has the same inputs and outputs passes under
            another's name.
        genai_builder: whether the graph that ONNX Runtime GenAI's own builder makes of it was seen
            to give PyTorch's logits; the builder knows more.
    """

    transposed: tuple[str, ...] = ()
    genai_type: str | None = None
    genai_builder: bool = False

    def is_transposed(self, name: str) -> bool:
        """Whether the unquantized matrix `name` lies (in, out) in the checkpoint."""
        return name.endswith(self.transposed)


ARCHITECTURES = {
    "gpt2": Architecture(  # transformers' Conv1D
        transposed=(".c_attn.weight", ".c_proj.weight", ".c_fc.weight"), genai_type="llama"
    ),
    "granite": Architecture(genai_builder=True),
    "llama": Architecture(genai_builder=True),
    "olmo2": Architecture(genai_type="olmo"),
    "qwen2": Architecture(genai_builder=True),
    "qwen3": Architecture(genai_builder=True),
}


# The model types of onnxruntime-genai 0.18 with keys and values as their only cache: it refuses to
# load a folder of another. Source: src/models/model_type.h, and each tried on one folder.
GENAI_TYPES = frozenset(
    {
        "ernie4_5", "gemma", "gemma2", "gemma3_text", "gemma4_text", "granite", "llama", "mistral",
        "nemotron", "olmo", "phi", "phi3", "phimoe", "qwen2", "qwen3", "smollm3",
    }
)  # fmt: skip


def genai_type(model_type: object) -> str | None:
    """What ONNX Runtime GenAI calls config.json's `model_type`; None: it does not take it."""
    name = find_architecture(model_type).genai_type or str(model_type)
    return name if name in GENAI_TYPES else None


def find_architecture(model_type: object) -> Architecture:
    """The entry of config.json's `model_type`, or one that says nothing."""
    return ARCHITECTURES.get(str(model_type), Architecture())
