"""`--packing documents`: each document is computed as if it were alone, in every stage."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import MambaConfig, MambaForCausalLM

from lrqat.errors import DataError, UserError
from lrqat.models import hub
from lrqat.models.documents import keeps_apart, positions_of
from lrqat.models.split import split_or_whole
from lrqat.training.blocks.walk import BlockWalk
from lrqat.training.config import TrainConfig
from lrqat.training.data.apart import ALONE, POSITIONS, keep_apart
from lrqat.training.data.chats import Chat
from lrqat.training.data.documents import pack
from lrqat.training.data.mixture import mix
from lrqat.training.data.packing import DOCUMENTS, STREAM
from lrqat.training.data.whole_chats import pack_whole
from lrqat.training.objectives.cache_key import CacheKey
from lrqat.training.objectives.losses import Objective, SelfTeacher
from lrqat.training.run import train
from tests.support.zoo import make

# With windows shorter than a document, learned positions, two sets of frequencies.
APART = ["llama", "mistral, window", "gemma3", "gpt2", "qwen3_moe", "granite"]
LENGTHS = (24, 30, 10)
RUN = {"steps": 4, "batch_size": 2, "sequence_length": 32, "rank": 4, "context": 32,
       "eval_windows": 2, "save_every": 2, "importance_tokens": 64, "packing": "documents",
       "block_steps": 2, "block_tokens": 256}  # fmt: skip


def packed(vocabulary):
    """Two blocks of three documents, (tokens, starts), of 64 tokens each."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(vocabulary, (2, sum(LENGTHS)), generator=generator)
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[0, [0, 24, 54]] = True
    starts[1, [0, 30, 40]] = True  # the second block is cut elsewhere
    return tokens, starts


def documents_of(tokens, starts):
    for row, begins in zip(tokens, starts, strict=True):
        ends = [*begins.nonzero().flatten().tolist()[1:], len(row)]
        for begin, end in zip(begins.nonzero().flatten().tolist(), ends, strict=True):
            yield row[begin:end]


def states():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    return MambaForCausalLM(MambaConfig(**sizes, initializer_range=0.5)).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", APART)
def test_logits_of_a_document_do_not_depend_on_its_neighbours(name):
    """Through the model, through its halves, and block by block."""
    model = make(name).eval()
    assert keeps_apart(model)
    tokens, starts = packed(model.config.get_text_config().vocab_size)
    positions = positions_of(starts)
    alone = torch.cat([model(input_ids=d[None]).logits[0] for d in documents_of(tokens, starts)])
    halves = split_or_whole(model, tokens)
    walk = BlockWalk(model, tokens.shape[1], positions)
    ways = {"halves": halves.logits(halves.features(tokens, positions))}
    hidden = walk.embed(tokens, slice(0, 2))
    for index in range(len(walk.names)):
        rows = slice(0, 2) if index else torch.tensor([0, 1])
        hidden = walk.run(index, hidden, rows)
    ways["blocks"] = walk.tail()(hidden)
    bound = 1e-4 * alone.abs().max()
    for way, logits in ways.items():
        assert (logits.flatten(0, 1) - alone).abs().max() < bound, way
    crossing = model(input_ids=tokens).logits.flatten(0, 1)
    assert (crossing - alone).abs().max() > 10 * bound, "or the test could not fail"


def test_a_model_with_states_is_told():
    assert not keeps_apart(states())


def test_positions_start_anew():
    starts = torch.tensor([[False, False, True, True, False], [True, False, False, False, False]])
    assert positions_of(starts).tolist() == [[0, 1, 0, 0, 1], [0, 1, 2, 3, 4]]


def test_a_block_of_documents_has_the_tokens_of_the_stream():
    tokens = np.arange(20, dtype=np.int32)
    starts = np.isin(tokens, (0, 3, 10, 11))
    made = keep_apart(tokens, starts, 8, POSITIONS)
    assert made.tokens.reshape(-1).tolist() == list(range(16))
    assert made[0]["position_ids"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert made[1]["position_ids"].tolist() == [0, 1, 0, 0, 1, 2, 3, 4]
    weights = made[0]["loss_weights"]
    assert (weights == 0).tolist() == [False, False, True, False, False, False, False, True]
    assert made.take(np.array([1]))[0]["position_ids"].tolist() == made[1]["position_ids"].tolist()
    twice = mix([made, made], [2, 2])
    assert {tuple(twice[i]["position_ids"].tolist()) for i in range(4)} == {
        tuple(made[i]["position_ids"].tolist()) for i in range(2)
    }


def test_alone_a_block_begins_with_its_document_and_learns_no_other():
    tokens = np.arange(20, dtype=np.int32)
    starts = np.isin(tokens, (0, 3, 14, 15))
    made = keep_apart(tokens, starts, 8, ALONE)
    assert [row[0] for row in made.tokens] == [0, 3, 11, 15]
    assert made.tokens[3].tolist() == [15, 16, 17, 18, 19, 0, 1, 2], "the stream is a ring"
    assert made.learned.sum(1).tolist() == [2, 7, 2, 4]
    assert made.starts is None
    assert "position_ids" not in made[0]


def test_texts_begin_with_their_first_token(tiny_model):
    tokenizer = hub.load_tokenizer(tiny_model)
    texts = ["one text", "two\nlines of it", "x"] * 9
    made = pack(texts, tokenizer, length=16, needed_tokens=16, how=POSITIONS)
    stream = pack(texts, tokenizer, length=16, needed_tokens=16)
    assert (made.tokens == stream.tokens).all()
    flat, begins = made.tokens.reshape(-1), made.starts.reshape(-1)
    after_ends = np.append(False, flat[:-1] == tokenizer.eos_token_id)
    assert (begins[1:] == after_ends[1:]).all()
    assert begins.sum() > 3


def test_answers_stay_learned_and_chats_apart():
    chats = [Chat([i] * 5, [False, False, True, True, False]) for i in range(1, 7)]
    made, plain = (
        pack_whole(chats, length=8, most=100, how=how, progress=None, say=print)
        for how in (POSITIONS, STREAM)
    )
    assert (made.tokens == plain.tokens).all()
    assert (made.learned == plain.learned).all()
    assert made[0]["position_ids"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


@torch.no_grad()
def test_the_loss_of_documents_is_the_mean_of_theirs(tiny_model):
    """Cross-entropy of each alone; and a teacher that is the model itself is at no distance."""
    model = hub.load_model(tiny_model, dtype=torch.float32)
    tokens, starts = packed(model.config.vocab_size)
    flat = starts.reshape(-1).numpy()
    blocks = keep_apart(tokens.int().numpy().reshape(-1), flat, tokens.shape[1], POSITIONS)
    rows = [blocks[0], blocks[1]]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    loss = Objective()(model, **batch)
    sums = [
        torch.nn.functional.cross_entropy(model(input_ids=d[None]).logits[0, :-1], d[1:])
        * (len(d) - 1)
        for d in documents_of(tokens, starts)
    ]
    predicted = sum(len(d) - 1 for d in documents_of(tokens, starts))
    torch.testing.assert_close(loss, sum(sums) / predicted, rtol=1e-4, atol=0)

    class Same:
        def __init__(self, model):
            pass

        __enter__ = __exit__ = lambda *_: None

    assert abs(Objective(SelfTeacher(Same))(model, **batch)) < 1e-6


def test_a_cache_is_of_where_documents_start():
    tokens, starts = np.arange(16, dtype=np.int32), np.arange(16) % 5 == 0
    keys = {
        CacheKey.of(keep_apart(tokens, s, 8, POSITIONS), teacher="t", k=2, vocabulary=9)
        for s in (starts, ~starts)
    }
    assert len(keys) == 2


@pytest.fixture
def rows(text, tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [line for line in text.splitlines() if len(line) > 40][:400]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def test_a_run_of_both_stages_that_is_continued_gives_the_same(rows, tiny_model, tmp_path):
    def run(name, resume=None, **changes):
        paths = {"model": str(tiny_model), "data": str(rows), "output": str(tmp_path / name)}
        return train(TrainConfig(**RUN | paths | changes), resume=resume, overwrite=bool(resume))

    cache = {"teacher_cache": str(tmp_path / "cache")}
    whole = run("run", **cache).output
    tensors = load_file(whole / "model.safetensors")
    state = whole / "checkpoints" / "checkpoint-2"
    assert state.is_dir()
    assert json.loads((whole / "lrqat.json").read_text())["training"]["packing"] == "documents"
    again = run("run", resume=str(state), **cache).output
    resumed = load_file(again / "model.safetensors")
    assert all(torch.equal(tensors[name], resumed[name]) for name in tensors)
    stream = load_file(run("stream", packing="stream").output / "model.safetensors")
    assert any(not torch.equal(tensors[name], stream[name]) for name in tensors)


def test_what_cannot_keep_them_apart_has_one_in_a_sequence(rows, tiny_model, tmp_path):
    paths = {"model": str(tiny_model), "data": str(rows), "output": str(tmp_path / "run")}
    streamed = RUN | paths | {"streamed": True, "steps": 1}
    with pytest.raises(DataError, match="--stages model"):
        train(TrainConfig(**streamed, stages="blocks,model"))
    said = []
    train(TrainConfig(**streamed, stages="model"), say=said.append)
    assert any("one document in each sequence" in line for line in said)


def test_text_that_the_model_writes_is_one_stream():
    with pytest.raises(UserError, match="one stream"):
        TrainConfig(model="m", data="self", eval_data="e.txt", output="o", packing=DOCUMENTS)
