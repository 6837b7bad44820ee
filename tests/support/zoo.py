"""The zoo: tiny random models of the architectures of Hugging Face, each configuration by a name.

Tests name what they want from `CONFIGS`; the lists below it say which of them are for what.
"""

import torch
import transformers as hf
from torch import nn

VOCABULARY = 288
# How far logits of these models may differ between float32 runtimes, and where a GELU comes from
# llama.cpp's table on one side only.
L1_BOUND, GELU_BOUND = 1e-4, 1e-3
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
HEAD_DIM = SIZES | {"head_dim": 16}
MOE = HEAD_DIM | {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 3}
SHARED = SIZES | {
    "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 32,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
NEOX = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
MAMBA = {"mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 8}
STATES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
# The second layer is attention and experts, the first neither.
JAMBA = {
    "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
    "expert_layer_offset": 1, "num_experts": 4, "mamba_d_state": 8, "mamba_dt_rank": 32,
    "use_mamba_kernels": False,
}  # fmt: skip
LATENT = SIZES | {
    "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip

# Windows shorter than a prompt.
GEMMA = HEAD_DIM | {"query_pre_attn_scalar": 16, "sliding_window": 20}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
OTHER_THETA = {"rope_type": "default", "rope_theta": 500000.0}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
GEMMA3_ROPE = {
    "full_attention": LINEAR_ROPE | {"rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
LONG_ROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 4.0, 8.0, 16.0],
}  # fmt: skip
EXTENDED = {"max_position_embeddings": 256}
YARN_ROPE = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN_SAID = YARN_ROPE | {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
YARN_SCALES = YARN_ROPE | {"mscale": 0.7, "mscale_all_dim": 1.5}
GRANITE = SIZES | {
    "embedding_multiplier": 3.0, "logits_scaling": 2.0, "attention_multiplier": 0.3,
    "residual_multiplier": 0.7,
}  # fmt: skip

# Architecture, and what is special about it -> configuration. Each is a function, so that a test
# may change what it gets.
CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**SIZES),
    "llama, biases": lambda: hf.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama, tied": lambda: hf.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama, head_dim": lambda: hf.LlamaConfig(**SIZES, head_dim=32),
    "llama, one key-value head": lambda: hf.LlamaConfig(**SIZES | {"num_key_value_heads": 1}),
    "llama, rope theta": lambda: hf.LlamaConfig(**SIZES, rope_parameters=OTHER_THETA),
    "llama, linear rope": lambda: hf.LlamaConfig(**SIZES, rope_parameters=LINEAR_ROPE),
    "llama, llama3 rope": lambda: hf.LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE),
    "llama, yarn": lambda: hf.LlamaConfig(**SIZES | EXTENDED, rope_parameters=YARN_ROPE),
    "llama, yarn scales": lambda: hf.LlamaConfig(**SIZES | EXTENDED, rope_parameters=YARN_SCALES),
    "mistral": lambda: hf.MistralConfig(**SIZES | {"head_dim": 32}, sliding_window=None),
    "mistral, window": lambda: hf.MistralConfig(**SIZES | {"head_dim": 32}, sliding_window=20),
    "qwen2": lambda: hf.Qwen2Config(**SIZES),
    "qwen2, yarn": lambda: hf.Qwen2Config(
        **SIZES | EXTENDED, rope_parameters=YARN_ROPE | {"attention_factor": 0.8}
    ),
    "qwen2_moe": lambda: hf.Qwen2MoeConfig(**SHARED),
    "qwen3": lambda: hf.Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True),
    "qwen3, linear rope": lambda: hf.Qwen3Config(**HEAD_DIM, rope_parameters=LINEAR_ROPE),
    "qwen3, yarn": lambda: hf.Qwen3Config(**HEAD_DIM | EXTENDED, rope_parameters=YARN_SAID),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**MOE, norm_topk_prob=True),
    "qwen3_moe, yarn": lambda: hf.Qwen3MoeConfig(
        **MOE | EXTENDED, norm_topk_prob=True, rope_parameters=YARN_ROPE
    ),
    "gemma2": lambda: hf.Gemma2Config(**GEMMA),
    "gemma2, yarn": lambda: hf.Gemma2Config(**GEMMA | EXTENDED, rope_parameters=YARN_ROPE),
    "gemma2, low caps": lambda: hf.Gemma2Config(
        **GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=5.0
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **GEMMA, layer_types=["sliding_attention", "full_attention"], rope_parameters=GEMMA3_ROPE
    ),
    "gemma3, yarn": lambda: hf.Gemma3TextConfig(
        **GEMMA | EXTENDED, layer_types=["sliding_attention", "full_attention"],
        rope_parameters=GEMMA3_ROPE | {"full_attention": YARN_ROPE},
    ),
    "gemma3, six layers": lambda: hf.Gemma3TextConfig(
        **GEMMA | {"num_hidden_layers": 6}, final_logit_softcapping=5.0, tie_word_embeddings=False
    ),
    "phi3": lambda: hf.Phi3Config(**SIZES),
    "phi3, window": lambda: hf.Phi3Config(**SIZES, sliding_window=20),
    "phi3, long rope": lambda: hf.Phi3Config(
        **SIZES | {"max_position_embeddings": 512}, rope_parameters=LONG_ROPE,
        original_max_position_embeddings=256,
    ),
    "phi3, long rope from 64": lambda: hf.Phi3Config(
        **SIZES, rope_parameters=LONG_ROPE, original_max_position_embeddings=64
    ),
    "granite": lambda: hf.GraniteConfig(**GRANITE, attention_bias=True, mlp_bias=True),
    "granite, llama3 rope": lambda: hf.GraniteConfig(
        **GRANITE, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True
    ),
    "granite, yarn": lambda: hf.GraniteConfig(**GRANITE | EXTENDED, rope_parameters=YARN_ROPE),
    # Every fourth layer has no positions, in llama.cpp's graph always.
    "smollm3": lambda: hf.SmolLM3Config(**SIZES | {"num_hidden_layers": 4}),
    "smollm3, every second": lambda: hf.SmolLM3Config(**SIZES, no_rope_layer_interval=2),
    "smollm3, yarn": lambda: hf.SmolLM3Config(
        **SIZES | EXTENDED | {"num_hidden_layers": 4}, rope_parameters=YARN_ROPE
    ),
    "olmo2": lambda: hf.Olmo2Config(**SIZES),
    "olmo2, yarn": lambda: hf.Olmo2Config(**SIZES | EXTENDED, rope_parameters=YARN_ROPE),
    "olmo2, tied": lambda: hf.Olmo2Config(**SIZES, tie_word_embeddings=True),
    "gpt2": lambda: hf.GPT2Config(**GPT2),
    "gpt2, n_inner": lambda: hf.GPT2Config(**GPT2, n_inner=96, tie_word_embeddings=False),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**NEOX),
    "cohere": lambda: hf.CohereConfig(**SIZES, logit_scale=0.25),
    "falcon_h1": lambda: hf.FalconH1Config(**SIZES, **MAMBA, lm_head_multiplier=0.3),
    "mamba": lambda: hf.MambaConfig(**STATES, time_step_rank=32),
    "mamba2": lambda: hf.Mamba2Config(
        **STATES, num_heads=4, head_dim=32, n_groups=1, chunk_size=32
    ),
    "jamba": lambda: hf.JambaConfig(**SIZES, **JAMBA),
    "lfm2": lambda: hf.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
    "bloom": lambda: hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4),
    "gemma4, two head sizes": lambda: hf.Gemma4TextConfig(
        **HEAD_DIM, global_head_dim=32, layer_types=["sliding_attention", "full_attention"],
        hidden_size_per_layer_input=0, num_kv_shared_layers=0,
    ),
    "gemma4, shared keys": lambda: hf.Gemma4TextConfig(
        **HEAD_DIM | {"num_hidden_layers": 4}, global_head_dim=32,
        layer_types=["sliding_attention", "full_attention"] * 2, hidden_size_per_layer_input=32,
        vocab_size_per_layer_input=VOCABULARY, num_kv_shared_layers=2,
    ),
    "minicpm3": lambda: hf.MiniCPM3Config(**LATENT),
    "gpt_oss": lambda: hf.GptOssConfig(
        **HEAD_DIM, num_local_experts=4, num_experts_per_tok=2, sliding_window=20
    ),
    "apertus": lambda: hf.ApertusConfig(**SIZES),
    "ctrl": lambda: hf.CTRLConfig(
        vocab_size=VOCABULARY, n_embd=64, dff=96, n_layer=2, n_head=4, n_positions=128
    ),
    "falcon, alibi": lambda: hf.FalconConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_kv_heads=2, new_decoder_architecture=True, alibi=True,
    ),
    "falcon, one key-value head": lambda: hf.FalconConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        multi_query=True, bos_token_id=0, eos_token_id=0,
    ),
    "opt": lambda: hf.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=64, ffn_dim=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, word_embed_proj_dim=64,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    ),
}  # fmt: skip

# What the tests of training and fusing take: the names of layers, embedding and head, and what a
# layer holds.
ATTENTION = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
SEPARATE = [*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
PHI3 = ["self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"]
SHARED_EXPERT = [f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")]
LLAMA_NAMES = ("model.layers", "model.embed_tokens", "lm_head")

MODELS = {
    "llama": (LLAMA_NAMES, SEPARATE),
    "mistral": (LLAMA_NAMES, SEPARATE),
    "qwen2": (LLAMA_NAMES, SEPARATE),
    "qwen3": (LLAMA_NAMES, SEPARATE),
    "qwen3_moe": (LLAMA_NAMES, [*ATTENTION, *STACKS]),
    "qwen2_moe": (LLAMA_NAMES, [*ATTENTION, *STACKS, *SHARED_EXPERT]),
    "gemma2": (LLAMA_NAMES, SEPARATE),
    "gemma3": (LLAMA_NAMES, SEPARATE),
    "phi3": (LLAMA_NAMES, PHI3),
    "granite": (LLAMA_NAMES, SEPARATE),
    "smollm3, every second": (LLAMA_NAMES, SEPARATE),
    "olmo2": (LLAMA_NAMES, SEPARATE),
    "gpt2": (
        ("transformer.h", "transformer.wte", "lm_head"),
        ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    ),
    "gpt_neox": (
        ("gpt_neox.layers", "gpt_neox.embed_in", "lm_head"),
        ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
    ),
}
TIED = {"qwen3", "gemma2", "gemma3", "smollm3, every second", "gpt2"}

# Models that cannot become an ONNX graph, and a part of the reason.
NOT_IN_ONNX = {
    "mamba": "has no input past_key_values",
    "mamba2": "has no input past_key_values",
    "falcon_h1": "layer 0 of FalconH1ForCausalLM keeps a state of another kind",
    "lfm2": "layer 0 of Lfm2ForCausalLM keeps a state of another kind",
    "jamba": "is a stack of experts",
    "qwen3_moe": "is a stack of experts",
    "gpt_oss": "is a stack of experts",
    "bloom": "has no input position_ids",
    "falcon, alibi": "computes in bfloat16",
    "gemma4, two head sizes": "not all alike .*2 x 16, 2 x 32",
    "gemma4, shared keys": "layer 2 of Gemma4ForCausalLM keeps no keys and values of its own",
    "minicpm3": "not all alike",
}
# What llama.cpp's graphs compute, one of every kind.
IN_LLAMA_CPP = tuple(
    name for name in CONFIGS if name not in {
        "mistral, window", "qwen2_moe", "gemma2, low caps", "phi3, window",
        "phi3, long rope from 64", "smollm3, every second", "gpt_neox", "cohere",
        "falcon, one key-value head", "opt", "ctrl", "apertus", *NOT_IN_ONNX.keys() - {"qwen3_moe"},
    }
)  # fmt: skip
# One of every architecture in ONNX: windows shorter than a prompt, caps that bend the logits.
IN_ONNX = (
    "llama, llama3 rope", "mistral, window", "qwen2", "qwen3", "gemma2, low caps", "gemma3",
    "phi3, window", "phi3, long rope from 64", "granite", "smollm3, every second", "olmo2", "gpt2",
)  # fmt: skip
# Heads of every kind: tied, with a cap, a divisor, a factor, one that a multiplier comes before.
FOR_LOSSES = ("llama", "llama, tied", "gemma2, low caps", "granite", "cohere", "gpt2", "falcon_h1")


def small_llama(**values):
    """The configuration of a Llama whose head is its own."""
    return hf.LlamaConfig(**SIZES | {"tie_word_embeddings": False} | values)


def make(name, dtype=torch.float32, seed=0):
    return make_from(CONFIGS[name](), dtype, seed)


def make_from(config, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=dtype)
    for module in model.modules():  # as made they are small, zero or one, and hide mistakes
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.1)
            elif own == "bias":
                nn.init.normal_(parameter, std=0.5)
            else:  # a norm's, around one or, where the model adds one, around zero
                parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def with_outliers(model):
    """A Llama with what trained ones have: massive activations of token 0, logits around 30."""
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 7] = 300.0
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[7] = 0.02
        model.model.norm.weight[7] = 0.02
        model.get_output_embeddings().weight *= 10
    return model
