"""llama.cpp's own server renders chats as the template does that the model was trained with."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from exporters import gguf
from lrqat.checkpoint.reader import Checkpoint
from lrqat.models import hub
from lrqat.models.small_llama import make_tokenizer
from lrqat.training.config import TrainConfig
from lrqat.training.run import train
from tests.support.zoo import VOCABULARY, make

# ChatML with a system prompt of its own, as SmolLM2 and Qwen2.5 have it.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATS = [
    [{"role": "user", "content": "Where is\nthe sea?"}],
    [
        {"role": "system", "content": "Say what you know."},
        {"role": "user", "content": "Who sings? "},
        {"role": "assistant", "content": "A bird — mostly."},
        {"role": "user", "content": "And now"},
    ],
]
# The server listens as long as its process lives, so it has one of its own.
SERVER = """
import json, sys, urllib.request
import xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_parallel = sys.argv[1], 128, 1
parameters.use_jinja, parameters.warmup = True, False
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(parameters)

def ask(path, **content):
    data = json.dumps(content).encode()
    request = urllib.request.Request(server.listening_address + path, data)
    return json.load(urllib.request.urlopen(request, timeout=60))

found = []
for chat in json.loads(sys.argv[2]):
    prompt = ask("/apply-template", messages=chat)["prompt"]
    found.append([prompt, ask("/tokenize", content=prompt, parse_special=True)["tokens"]])
print("\\n" + json.dumps(found), flush=True)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    base, rows = folder / "base", folder / "chats.jsonl"
    tokenizer = make_tokenizer([json.dumps(CHATS) * 20], vocabulary=VOCABULARY - 2)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    make("llama").save_pretrained(base)
    tokenizer.save_pretrained(base)
    answer = {"role": "assistant", "content": "There, and there again."}
    chats = [json.dumps({"messages": [*chat, answer]}) for chat in CHATS * 40]
    rows.write_text("\n".join(chats))
    settings = {"model": str(base), "data": str(rows), "grid": "q4_0", "rank": 4, "steps": 2}
    settings |= {"sequence_length": 64, "context": 64, "eval_windows": 2, "stages": "model"}
    return train(TrainConfig(**settings, output=str(folder / "run"))).output


def test_chats_are_rendered_as_they_were_in_training(trained: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = trained / "model.gguf"
    gguf.write(gguf.plan(Checkpoint.open(trained)), path)
    command = [sys.executable, "-c", SERVER, str(path), json.dumps(CHATS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith("[["))
    tokenizer: Any = hub.load_tokenizer(str(trained))
    for chat, (prompt, ids) in zip(CHATS, found, strict=True):
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert prompt == rendered
        assert ids == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert "Be brief." in found[0][0]
    assert "Be brief." not in found[1][0]
