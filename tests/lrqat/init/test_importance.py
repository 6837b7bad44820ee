import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from lrqat.errors import DataError, ModelError, UserError
from lrqat.init import importance
from lrqat.models import hub


@pytest.fixture(scope="module")
def model(tiny_model):
    return hub.load_model(str(tiny_model), dtype=torch.float32)


def tokens(*shapes, vocabulary=500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocabulary, shape, generator=generator) for shape in shapes]


def linear_names(model):
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]


def test_every_projection_and_the_head_against_numpy(model):
    """The oracle keeps every input whole and squares it in NumPy, once, at the end."""
    batches = tokens((2, 33), (1, 7), (3, 60))
    names = linear_names(model)
    assert "lm_head" in names
    found = importance.collect(model, names, batches)
    kept = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda m, args, y, name=name: kept[name].append(args[0].detach().numpy().copy())
        )
        for name in names
    ]
    for batch in batches:
        model.eval()(batch)
    for handle in handles:
        handle.remove()
    assert list(found) == names
    for name, inputs in kept.items():
        flat = [x.reshape(-1, x.shape[-1]).astype("f8") for x in inputs]
        expected = sum((x**2).sum(0) for x in flat) / sum(map(len, flat))
        assert sum(map(len, flat)) == 66 + 7 + 180
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(
            found[name], torch.tensor(expected).float(), rtol=1e-6, atol=0, msg=name
        )


def test_the_cut_into_batches_and_blocks_does_not_matter(model, monkeypatch):
    name = "model.layers.0.mlp.down_proj"
    (batch,) = tokens((6, 20))
    whole = importance.collect(model, [name], [batch])[name]
    monkeypatch.setattr(importance, "_BLOCK_TOKENS", 7)
    parts = importance.collect(model, [name], [batch[:1], batch[1:]])[name]
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=0)


def test_who_reads_the_same_tensor_shares_the_work(model, monkeypatch):
    calls = []
    original = importance.sum_of_squares
    monkeypatch.setattr(
        importance, "sum_of_squares", lambda x: calls.append(x.shape) or original(x)
    )
    names = [name for name in linear_names(model) if name != "lm_head"]
    found = importance.collect(model, names, tokens((1, 8)))
    # Seven projections a layer read four tensors: of attention, o_proj, gate and up, down_proj.
    assert len(names) == 14
    assert len(calls) == 2 * 4
    q, k, gate = (
        found[f"model.layers.0.{name}"]
        for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")
    )
    assert torch.equal(q, k)
    assert not torch.equal(q, gate)


class ChangedBetween(nn.Module):
    """The second projection reads the same tensor object after a change in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = x.float()
        self.first(x)
        x *= 3
        return self.second(input=x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_change_in_place_between_two_readers_is_seen(mode):
    with mode():
        batches = [torch.arange(8).reshape(1, 2, 4)]
        found = importance.collect(ChangedBetween(), ["first", "second"], batches)
    expected = torch.tensor([8.0, 13, 20, 29])  # means of 0,4; 1,5; 2,6; 3,7 squared
    assert torch.equal(found["first"], expected)
    assert torch.equal(found["second"], 9 * expected)


def test_the_input_is_not_touched_and_float64_holds_the_squares():
    linear = nn.Linear(2, 1, dtype=torch.float64)
    # In float32, 1 + 1e-8 summed a thousand times loses the small part of every summand.
    x = torch.tensor([[1.0, 1e-4]], dtype=torch.float64).repeat(1000, 1)
    before = x.clone()
    found = importance.collect(nn.Sequential(linear), ["0"], [x] * 3)
    assert torch.equal(x, before)
    torch.testing.assert_close(found["0"], torch.tensor([1.0, 1e-8]), rtol=1e-7, atol=0)


def test_float64_holds_the_sum_over_batches():
    batches = [torch.full((1, 1), 4096.0)] + [torch.ones(1, 1)] * 100  # 2^24, and then ones
    found = importance.collect(nn.Sequential(nn.Linear(1, 1)), ["0"], batches)["0"].item()
    assert found == pytest.approx((2**24 + 100) / 101, rel=1e-7)


def test_bfloat16_sums_do_not_stall():
    linear = nn.Linear(1, 1, dtype=torch.bfloat16)
    x = torch.ones(5000, 1, dtype=torch.bfloat16)  # a bfloat16 sum of ones stops at 256
    assert importance.collect(nn.Sequential(linear), ["0"], [x])["0"].item() == 1.0


def test_conv1d_counts_its_input_side():
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50, "n_positions": 32}
    config = GPT2Config(**sizes, layer_norm_epsilon=1e-12, bos_token_id=None, eos_token_id=None)
    model = GPT2LMHeadModel(config)
    names = [name for name, m in model.named_modules() if isinstance(m, Conv1D)]
    found = importance.collect(model, names, tokens((2, 16), vocabulary=50))
    sizes = {name.rpartition("h.0.")[2]: len(value) for name, value in found.items()}
    assert sizes == {"attn.c_attn": 16, "attn.c_proj": 16, "mlp.c_fc": 16, "mlp.c_proj": 64}
    # What enters c_attn has passed a layer norm: over a token's channels, the mean square is 1.
    torch.testing.assert_close(found[names[0]].mean(), torch.tensor(1.0), rtol=1e-3, atol=0)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model.train()
    model[2].eval()
    batches = [torch.ones(3, 4)]
    found = importance.collect(model, ["1"], batches)["1"]
    assert torch.equal(found, torch.ones(4))  # no dropout while measuring
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(RuntimeError):
        importance.collect(model, ["1"], [torch.ones(3, 5)])
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert model.training


def test_progress_wraps_the_batches(model):
    seen = []
    importance.collect(
        model, ["lm_head"], tokens((1, 4), (1, 4)), lambda items: seen.append(len(items)) or items
    )
    assert seen == [2]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.embed_tokens", "Embedding"),
        ("model.norm", "LlamaRMSNorm"),
        ("model.layers.9.mlp", "no module"),
        ("model.layers.0.self_attn.q_proj.weight", "no module"),
    ],
)
def test_what_has_no_input_channels_is_refused(model, name, words):
    with pytest.raises(UserError, match=words):
        importance.collect(model, [name], tokens((1, 4)))


def test_no_text_and_bad_numbers_are_refused(model):
    with pytest.raises(DataError, match="lm_head"):
        importance.collect(model, ["lm_head"], [])
    linear = nn.Sequential(nn.Linear(2, 1))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ModelError, match="NaN"):
            importance.collect(linear, ["0"], [torch.tensor([[1.0, bad]])])


def test_experts_in_one_parameter_are_refused_by_their_name():
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config = Qwen3MoeConfig(
        hidden_size=8, moe_intermediate_size=6, num_experts=3, num_experts_per_tok=2
    )
    experts = Qwen3MoeExperts(config)
    assert experts.gate_up_proj.shape == (3, 12, 8)  # what the docstring says: (out, in)
    assert experts.down_proj.shape == (3, 8, 6)
    with pytest.raises(UserError, match="Qwen3MoeExperts"):
        importance.collect(nn.ModuleDict({"experts": experts}), ["experts"], [])
    assert linear_names(experts) == []  # nothing inside for a hook to sit on
