"""Text that the model writes itself, against the model's own logits without a cache."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lrqat.errors import DataError
from lrqat.models import hub
from lrqat.training.data.self_generated import _GREEDY, generate_blocks, start_ids, write_blocks

VOCABULARY, BOS, EOS = 23, 1, 2
STARTS = list(range(3, VOCABULARY))


def make(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    return LlamaForCausalLM(LlamaConfig(**sizes | changes)).eval()


def generate(model, **changes):
    settings = {
        "starts": STARTS,
        "bos": BOS,
        "eos": EOS,
        "blocks": 5,
        "length": 40,
        "batch_size": 2,
        "seed": 0,
    }
    return generate_blocks(model, **settings | changes).tokens


def sequences(row, bos, eos):
    """(start, end) of every sequence of a block, by the rule of the docstring."""
    opening, begin = (1 if bos is None else 2), 0
    for at in range(len(row)):
        if at >= begin + opening and row[at] == eos:
            yield begin, at + 1
            begin = at + 1
    yield begin, len(row)


@pytest.mark.parametrize("bos", [BOS, None])
@pytest.mark.parametrize("eos", [EOS, None])
def test_every_sequence_begins_at_random_goes_on_greedily_and_then_freely(bos, eos):
    model = make()
    tokens = generate(model, bos=bos, eos=eos)
    assert tokens.shape == (5, 40)
    assert tokens.dtype == np.int32
    with torch.no_grad():
        likely = model(input_ids=torch.from_numpy(tokens.astype(np.int64))).logits.argmax(-1)
    opening, free, greedy_by_chance = (1 if bos is None else 2), 0, 0
    for row, best in zip(tokens, likely.numpy(), strict=True):
        for begin, end in sequences(row, bos, eos):
            if bos is not None:
                assert row[begin:end][:1].tolist() in ([], [bos])
            assert all(start in STARTS for start in row[begin:end][opening - 1 : opening])
            greedy = range(begin + opening, min(begin + opening + _GREEDY, end))
            assert all(row[at] == best[at - 1] for at in greedy)
            for at in range(begin + opening + _GREEDY, end):
                free += 1
                greedy_by_chance += row[at] == best[at - 1]
    assert free > 50
    assert greedy_by_chance < 0.9 * free


def test_free_tokens_follow_the_models_distribution():
    """A model of two equally likely tokens, whatever came before."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=4, n_embd=4, n_layer=1, n_head=1)).eval()
    torch.nn.init.zeros_(model.transformer.ln_f.weight)
    torch.nn.init.zeros_(model.transformer.ln_f.bias)
    model.lm_head = torch.nn.Linear(4, 4)
    model.lm_head.weight.data.zero_()
    model.lm_head.bias.data = torch.tensor([0.25, 0.75, 1e-9, 1e-9]).log()
    tokens = generate(model, starts=[2], bos=None, eos=None, blocks=20, length=105, batch_size=20)
    free = tokens[:, 1 + _GREEDY :]
    assert set(np.unique(free)) == {0, 1}
    assert abs(free.mean() - 0.75) < 0.04  # 2,000 draws: four standard deviations
    assert (tokens[:, 0] == 2).all()
    assert (tokens[:, 1 : 1 + _GREEDY] == 1).all()


def test_a_row_does_not_depend_on_where_its_neighbours_texts_end():
    """With a model that is certain, what is drawn cannot matter: each row is its own greedy text.

    The oracle is the model's own generate().
    """
    model = make()
    model.lm_head.weight.data *= 1e4
    tokens = generate(model, bos=None, eos=None, blocks=4, length=30, batch_size=4)
    for row in tokens:
        ids = torch.tensor([[int(row[0])]])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_length=30,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert row.tolist() == expected[0].tolist()


def test_the_same_seed_gives_the_same_tokens_and_another_gives_others():
    model = make()
    torch.manual_seed(1)
    first = generate(model)
    torch.manual_seed(2)
    assert np.array_equal(first, generate(model))
    assert not np.array_equal(first, generate(model, seed=1))
    assert len({tuple(row) for row in first.tolist()}) == 5


def test_the_state_of_the_global_generator_and_the_mode_are_left_alone():
    model = make().train()
    before = torch.get_rng_state()
    generate(model)
    assert torch.equal(before, torch.get_rng_state())
    assert all(module.training for module in model.modules())


def test_a_context_that_is_too_short_is_refused():
    with pytest.raises(DataError, match=r"context of 64 tokens .* --sequence-length 64 or less"):
        generate(make(), length=65)
    assert generate(make(), length=64, blocks=1).shape == (1, 64)


def test_progress_counts_every_step():
    seen = []

    def progress(steps):
        for step in steps:
            seen.append(step)
            yield step

    generate(make(), progress=progress)
    assert len(seen) == 3 * 40  # batches of 2, 2 and 1


def test_a_tokenizers_special_tokens_begin_no_text(tiny_model):
    tokenizer = hub.load_tokenizer(tiny_model)
    starts = start_ids(tokenizer)
    assert tokenizer.eos_token_id not in starts
    assert len(starts) == len(tokenizer) - len(set(tokenizer.all_special_ids))
    model = hub.load_model(str(tiny_model), dtype=torch.float32)
    blocks = write_blocks(model, tokenizer, blocks=3, length=16, batch_size=2, seed=0)
    assert len(blocks) == 3
    assert blocks[0]["input_ids"].shape == (16,)
    assert set(blocks.tokens[:, 0]) <= set(starts)
