"""Models that end at their last learned position are run on no window that goes past it."""

import pytest
import torch
import transformers as hf

from lrqat.errors import DataError
from lrqat.models import hub
from lrqat.models.positions import learned_positions
from lrqat.runtimes.targets import continuation, evaluate
from lrqat.training.config import TrainConfig
from lrqat.training.plan import plan_training

SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 40}
GPT = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 40, "n_positions": 24}
POSITIONS = {"max_position_embeddings": 24}
LEARNED = {
    "gpt2": hf.GPT2Config(**GPT),
    "starcoder": hf.GPTBigCodeConfig(**GPT),
    "gpt_neo": hf.GPTNeoConfig(
        vocab_size=40, hidden_size=16, num_layers=1, num_heads=2, attention_types=[[["global"], 1]],
        **POSITIONS,
    ),
    "opt": hf.OPTConfig(**SMALL, ffn_dim=16, word_embed_proj_dim=16, **POSITIONS),
    "biogpt": hf.BioGptConfig(**SMALL, intermediate_size=16, **POSITIONS),
    "gptj": hf.GPTJConfig(**GPT, rotary_dim=4),
    "codegen": hf.CodeGenConfig(**GPT | {"n_head": 4}, rotary_dim=4),
}  # fmt: skip
ENDLESS = {
    "llama": hf.LlamaConfig(**SMALL, intermediate_size=16, **POSITIONS),
    "gpt_neox": hf.GPTNeoXConfig(**SMALL, intermediate_size=16, **POSITIONS),
    "bloom": hf.BloomConfig(n_layer=1, hidden_size=16, n_head=2, vocab_size=40),
    "xglm": hf.XGLMConfig(
        vocab_size=40, d_model=16, num_layers=1, attention_heads=2, ffn_dim=16, **POSITIONS
    ),
}


@pytest.mark.parametrize("name", [*LEARNED, *ENDLESS])
def test_a_model_computes_as_many_positions_as_it_is_said_to_have(name):
    config = (LEARNED | ENDLESS)[name]
    found = learned_positions(hub.meta_model(config))
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    assert found == learned_positions(model) == (24 if name in LEARNED else None)
    with torch.no_grad():
        model(input_ids=torch.ones(1, 24, dtype=torch.long))
        longer = torch.ones(1, 25, dtype=torch.long)
        if name not in LEARNED:
            model(input_ids=longer)
            return
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=longer)


@pytest.fixture(scope="module")
def gpt2(tiny_model, tmp_path_factory):
    """Folder of a GPT-2 of 48 positions, with the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("positions") / "gpt2"
    config = hf.GPT2Config(
        n_layer=1, n_embd=32, n_head=2, vocab_size=512, n_positions=48, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    hf.GPT2LMHeadModel(config).save_pretrained(folder)
    hub.load_tokenizer(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture
def settings(gpt2, text_file, tmp_path):
    return {
        "model": str(gpt2), "data": str(text_file), "output": str(tmp_path / "out"),
        "sequence_length": 48, "context": 48,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"sequence_length": 49}, "--sequence-length 49"),
        ({"context": 49}, "--context 49"),
    ],
)
def test_the_plan_refuses_lengths_past_the_last_position(settings, change, flag):
    assert plan_training(TrainConfig(**settings)).warnings == ()
    with pytest.raises(DataError, match=f"{flag} is more than the 48 positions.* learned"):
        plan_training(TrainConfig(**settings | change))


def test_the_plan_looks_at_the_teachers_positions_too(settings, gpt2, tiny_model):
    change = {"model": str(tiny_model), "teacher": str(gpt2)}
    assert plan_training(TrainConfig(**settings | change))
    with pytest.raises(DataError, match="--context 64 is more than the 48"):
        plan_training(TrainConfig(**settings | change | {"context": 64}))


def test_an_evaluation_refuses_windows_past_the_last_position(gpt2, text):
    evaluate(str(gpt2), text, context=48, limit=1)
    with pytest.raises(DataError, match="--context 49 is more than the 48"):
        evaluate(str(gpt2), text, context=49, limit=1)
    assert isinstance(continuation(str(gpt2), "def", 100, context=512), str)
