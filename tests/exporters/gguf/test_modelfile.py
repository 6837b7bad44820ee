"""The Modelfile: Go templates that write what the Jinja of the checkpoint writes, or none."""

import json
import shutil
import subprocess

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from exporters import gguf
from exporters.gguf.chat_form import OtherFormError, find_chat_form
from exporters.gguf.modelfile import go_template
from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.verification import accept_tokenizer
from lrqat.errors import ExportRefusedError, OutputError

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system
You are helpful {{ always }}.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
LLAMA3 = """{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] \
+ '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\
{% endif %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}\
{% endif %}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' \
else message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim \
+ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}\
{% endif %}"""
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set s = '<<SYS>>' + messages[0]['content'] \
+ '<</SYS>>' %}{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}\
{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (s if \
loop.index0 == 0 else '') + m['content'] + ' [/INST]' }}\
{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}\
{% endfor %}"""
OF_THE_FORM = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA}
CHATS = [
    [("user", "Hi {{ .Role }}")],
    [("system", "Be brief."), ("user", "a\n\nb"), ("assistant", "é"), ("user", '"c"')],
]
GO = """package main
import ("encoding/json"; "os"; "text/template")
func main() {
	var given struct { Template string; Values map[string]any }
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil { panic(err) }
	t := template.Must(template.New("").Option("missingkey=zero").Parse(given.Template))
	if err := t.Execute(os.Stdout, given.Values); err != nil { panic(err) }
}
"""


def jinja(template, chat, prompted=True):
    messages = [{"role": role, "content": text} for role, text in chat]
    return render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=prompted,
        bos_token="<s>", eos_token="</s>",
    )[0][0]  # fmt: skip


@pytest.mark.parametrize("name", OF_THE_FORM)
def test_the_form_writes_what_the_template_writes(name):
    template = OF_THE_FORM[name]
    form = find_chat_form(template, "<s>", "</s>")
    assert (form.system is None) == (name == "gemma")
    for chat in CHATS[: 1 if form.system is None else 2]:
        for prompted in (False, True):
            assert form.render(chat, prompted) == jinja(template, chat, prompted)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (LLAMA2, "depends on its place"),
        ("{{ messages[0]['content'] }}", "every message"),
        ("{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}", "more than once"),
        ("{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}", "place"),
        (
            "{% for m in range(10**5) %}{% for n in range(10**5) %}{% endfor %}{% endfor %}",
            "it (takes too long|needs too much memory)",  # whichever limit it meets first
        ),
        ("{{ 'a' * 10**11 }}", "."),
        ("{{ raise_exception('no') }}", "no"),
        ("{% for", "does not run"),
    ],
)
def test_another_form_is_told(template, reason):
    with pytest.raises(OtherFormError, match=reason):
        find_chat_form(template, "<s>", "</s>")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")
@pytest.mark.parametrize("name", OF_THE_FORM)
def test_go_writes_what_jinja_writes(name, tmp_path):
    (tmp_path / "main.go").write_text(GO)
    template = go_template(find_chat_form(OF_THE_FORM[name], "<s>", "</s>"), "<s>")
    for chat in CHATS[: 1 if name == "gemma" else 2]:
        # As Ollama's template.go gives them.
        values = {
            "System": "\n\n".join(text for role, text in chat if role == "system"),
            "Messages": [{"Role": role, "Content": text} for role, text in chat],
        }
        given = json.dumps({"Template": template, "Values": values})
        ran = subprocess.run(
            ["go", "run", "main.go"], cwd=tmp_path, input=given, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout == jinja(OF_THE_FORM[name], chat).removeprefix("<s>")


def chatting(fused, folder, template=CHATML):
    shutil.copytree(fused, folder)
    (folder / "chat_template.jinja").write_text(template)
    settings = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "eos_token_id": 0,
    }
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": 0}))
    accept_tokenizer(folder)
    return Checkpoint.open(folder)


def test_a_modelfile_lies_beside_the_file(fused_checkpoint, tmp_path):
    checkpoint = chatting(fused_checkpoint, tmp_path / "fused")
    plan = gguf.plan(checkpoint, gguf.Options(modelfile=True))
    assert any("TEMPLATE" in line for line in plan.summary())
    report = gguf.write(plan, tmp_path / "out" / "my model.gguf")
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith('FROM ./my model.gguf\nTEMPLATE """{{ if .System }}<|im_start|>system\n')
    assert '{{ "{{" }} always }}' in text, "braces of the text are no action of Go's"
    end = checkpoint_token(checkpoint, 0)
    assert text.endswith(
        f'"""\nPARAMETER stop "{end}"\nPARAMETER top_k 20\nPARAMETER top_p 0.95\n'
        "PARAMETER temperature 0.6\n"
    )
    assert report.notes == []
    assert sorted(report.files) == ["my model.gguf"]
    with pytest.raises(OutputError, match="exists"):
        gguf.write(plan, tmp_path / "out" / "other.gguf")


def checkpoint_token(checkpoint, number):
    vocab = json.loads((checkpoint.path / "tokenizer.json").read_text())["model"]["vocab"]
    return next(token for token, i in vocab.items() if i == number)


def test_a_template_that_go_cannot_say_is_left_out_and_named(fused_checkpoint, tmp_path):
    made = gguf.plan(
        chatting(fused_checkpoint, tmp_path / "fused", LLAMA2), gguf.Options(modelfile=True)
    )
    assert made.modelfile is not None
    assert "cannot be said in Go's language" in made.modelfile.notes[0]
    assert not any(line.startswith("TEMPLATE") for line in made.modelfile.lines)
    assert made.modelfile.lines[0] == f"# {made.modelfile.notes[0]}"
    assert gguf.plan(made.checkpoint).modelfile is None


def test_a_modelfile_is_of_one_file():
    with pytest.raises(ExportRefusedError, match="--split-max-size"):
        gguf.Options(modelfile=True, split_max_size="1G")
