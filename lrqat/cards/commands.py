"""How to run what a card describes, to copy: one section for each kind of file.

The commands are those of the programs' own documentation. Which of them were run, and what was
measured then, is in the card's tables and nowhere else.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lrqat.foreign_text import in_code_span

CHECKPOINT, GGUF, ONNX, GENAI = "checkpoint", "gguf", "onnx", "onnx-genai"


@dataclass(frozen=True)
class Artefact:
    """A file or folder that a card describes.

    Attributes:
        kind: CHECKPOINT, or the name of its format.
        path: in the repository; "" for what lies at its top.
        bytes: of the model, without tokenizer and configuration.
        bits_per_weight: mean over all tensors, scales included.
        compared: tensors that were compared with the checkpoint, all equal; None: not now.
        standard: of a checkpoint, whether transformers loads it.
        pieces: of an ONNX folder, how many files of weights it has.
        measured: what was recorded of it, see `lrqat.cards.measurements`, by what it was compared
            with.
    """

    kind: str
    path: str
    bytes: int
    bits_per_weight: float
    compared: int | None = None
    standard: bool = True
    pieces: int = 1
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its path for people."""
        return self.path or "this folder"


def commands(artefacts: list[Artefact], repository: str | None, modelfile: bool) -> str:
    """Sections of Markdown.

    Args:
        artefacts: what there is.
        repository: owner/name where it is published, or None: in the reader's folder.
        modelfile: whether a Modelfile lies beside the GGUF files.
    """
    return "\n".join(
        _SECTIONS[artefact.kind](artefact, repository, modelfile) for artefact in artefacts
    )


def _checkpoint(artefact: Artefact, repository: str | None, modelfile: bool) -> str:
    where = repository or "."
    if artefact.standard:
        title, vllm = "transformers, vLLM", _VLLM.format(where=where)
        load = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({where!r})  # float32: all is exact\n"
            f"tokenizer = AutoTokenizer.from_pretrained({where!r})"
        )
        install = "`pip install transformers compressed-tensors`"
    else:
        title, vllm, install = "Python", "", "`pip install lrqat`; " + _NO_FORM
        fetch, folder = ("", "'.'")
        if repository:
            fetch = "from huggingface_hub import snapshot_download\n"
            folder = f"snapshot_download({repository!r})"
        load = (
            f"{fetch}from lrqat import Checkpoint, load_reference\n\n"
            f"model = load_reference(Checkpoint.open({folder}))  # float32: all is exact"
        )
    here = "" if repository else _EXPORT
    return f"### {title}\n\n{install}\n\n```python\n{load}\n```\n{vllm}{here}"


def _gguf(artefact: Artefact, repository: str | None, modelfile: bool) -> str:
    file = in_code_span(artefact.path)
    model = f"-hf {repository} -hff {file}" if repository else f"-m {file}"
    # Ollama finds a file of a repository by its whole name in place of a tag.
    ollama = f"ollama run hf.co/{repository}:{file}"
    if modelfile or not repository:
        ollama = "ollama create my-model -f Modelfile && ollama run my-model"
    studio = f"lms get https://huggingface.co/{repository}" if repository else f"lms import {file}"
    return _GGUF.format(file=file, model=model, ollama=ollama, studio=studio)


def _onnx(artefact: Artefact, repository: str | None, modelfile: bool) -> str:
    folder = in_code_span(artefact.path) or "."
    fetch = f"hf download {repository} --include '{folder}/*' --local-dir ." if repository else ""
    text = _ONNX.format(folder=folder, fetch=f"```sh\n{fetch}\n```\n\n" if fetch else "")
    if artefact.kind == GENAI:
        return text
    subfolder, model, local = (folder, repository, "") if repository else ("", folder, _LOCAL)
    options = {"subfolder": subfolder, "dtype": "fp32", "use_external_data_format": artefact.pieces}
    return text + _BROWSER.format(
        local=local, model=json.dumps(model), options=json.dumps(options, indent=2)
    )


_SECTIONS: dict[str, Callable[[Artefact, str | None, bool], str]] = {
    CHECKPOINT: _checkpoint,
    GGUF: _gguf,
    ONNX: _onnx,
    GENAI: _onnx,
}
_NO_FORM = "compressed-tensors has no form for what is on a grid here, so lrqat loads it"
_VLLM = """
vLLM reads the same format; float16 keeps every scale, bfloat16 would round them:

```sh
vllm serve {where} --dtype float16
```
"""
_EXPORT = """
### Other runtimes

With `pip install 'lrqat[gguf,onnx]'`, in this folder:

```sh
lrqat export . --format gguf     # llama.cpp, Ollama, LM Studio
lrqat export . --format onnx     # ONNX Runtime, browsers
```
"""
_GGUF = """### llama.cpp, Ollama, LM Studio: `{file}`

```sh
llama-cli {model}
llama-server {model} --port 8080
{ollama}
{studio}
```
"""
_ONNX = """### ONNX Runtime: `{folder}`

{fetch}`pip install onnxruntime-genai`, where the folder has a `genai_config.json`; its
README.md has programs for ONNX Runtime alone and for others.

```python
import onnxruntime_genai

model = onnxruntime_genai.Model("{folder}")
tokenizer = onnxruntime_genai.Tokenizer(model)
parameters = onnxruntime_genai.GeneratorParams(model)
parameters.set_search_options(max_length=256, do_sample=False)
generator = onnxruntime_genai.Generator(model, parameters)
generator.append_tokens(tokenizer.encode("Once upon a time"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
```
"""
_BROWSER = """
In a browser, by transformers.js:

```js
import {{ env, pipeline }} from "@huggingface/transformers";

{local}const generate = await pipeline("text-generation", {model}, {options});
console.log(await generate("Once upon a time", {{ max_new_tokens: 32 }}));
```
"""
_LOCAL = """env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = "";
"""
