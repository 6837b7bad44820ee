"""KL from a base, token by token: against transformers' own logits."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporters import gguf
from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import evaluate
from lrqat.errors import DataError, UserError
from lrqat.models.small_llama import make_tokenizer, make_untrained_model
from lrqat.runtimes.divergence import measure_divergence

CONTEXT, WINDOWS = 64, 3


@pytest.fixture(scope="module")
def rounded(make_fused):
    return make_fused("q2_0")


def log_probabilities(folder, tokens):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens)[None]).logits[0].double().log_softmax(-1)


def test_every_token_has_its_own(tiny_model, rounded, text_file):
    text = text_file.read_text()
    found = measure_divergence(str(rounded), str(tiny_model), text, context=CONTEXT, limit=WINDOWS)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = tokenizer(text)["input_ids"]
    assert len(found.tokens) == WINDOWS * (CONTEXT // 2 - 1)
    token = found.tokens[CONTEXT // 2 + 3]  # the fifth that is scored of the second window
    assert (token.window, token.position) == (1, CONTEXT // 2 + 5)
    window = list(ids[CONTEXT : 2 * CONTEXT])
    base, own = (log_probabilities(f, window)[token.position - 1] for f in (tiny_model, rounded))
    assert token.kl == pytest.approx(float((base.exp() * (base - own)).sum()), rel=0.2)
    assert token.token == tokenizer.decode([window[token.position]])
    assert token.base_top == tokenizer.decode([int(base.argmax())])
    assert token.top == tokenizer.decode([int(own.argmax())])


def test_means_are_those_of_the_tokens(tiny_model, rounded, text_file):
    found = measure_divergence(
        str(rounded), str(tiny_model), text_file.read_text(), context=CONTEXT, limit=WINDOWS
    )
    kls = np.array([token.kl for token in found.tokens])
    assert found.comparison.kl == pytest.approx(kls.mean())
    assert found.quantiles["most"] == kls.max() == found.worst(1)[0].kl
    assert found.quantiles["99%"] == pytest.approx(np.quantile(kls, 0.99))
    same = np.mean([token.top == token.base_top for token in found.tokens])
    assert found.comparison.same_top == pytest.approx(same, abs=0.05)
    for rows in found.groups.values():
        assert sum(count for _, count in rows.values()) == len(kls)
        total = sum(kl * count for kl, count in rows.values())
        assert total / len(kls) == pytest.approx(kls.mean())
    window, kl = found.worst_windows(1)[0]
    assert kl == pytest.approx(np.mean([t.kl for t in found.tokens if t.window == window]))


def test_the_command_writes_what_it_measured_and_replaces_nothing(
    tiny_model, rounded, text_file, tmp_path, capfd
):
    checkpoint = Checkpoint.open(rounded)
    path = tmp_path / "x.gguf"
    gguf.write(gguf.plan(checkpoint), path)
    asked = [str(path), "--data", str(text_file), "--context", str(CONTEXT), "--windows", "2"]
    asked += ["--base", str(tiny_model), "--tokens", str(tmp_path / "tokens.json")]
    assert evaluate.main([*asked, "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    written = json.loads((tmp_path / "tokens.json").read_text())
    assert {name: written[name] for name in said} == said
    assert said["runtime"] == "llama.cpp"
    assert len(written["per_token"]) == said["tokens"] == 2 * (CONTEXT // 2 - 1)
    with pytest.raises(UserError, match="--overwrite"):
        evaluate.main(asked)
    with pytest.raises(UserError, match="--base"):
        evaluate.main([str(path), "--data", str(text_file), "--tokens", "x.json"])


def test_a_base_with_another_vocabulary_is_refused(rounded, text_file, tmp_path):
    text = text_file.read_text()
    tokenizer = make_tokenizer([text[:5000]], vocabulary=300)
    sizes = {"hidden": 64, "intermediate": 64, "layers": 1, "heads": 2, "kv_heads": 1}
    make_untrained_model(len(tokenizer), **sizes, seed=0).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="different tokens"):
        measure_divergence(str(rounded), str(tmp_path), text, context=CONTEXT)
