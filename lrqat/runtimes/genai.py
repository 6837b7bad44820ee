"""ONNX Runtime GenAI: text from an exported folder.

The runtime never sees the folder itself: it gets links to model and tokenizer, and a configuration
of ours (`lrqat.runtimes.genai_config`), so that nothing in a folder makes it load foreign code.
"""

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exporters.onnx.folder.model_file import MODEL, data_files, read_model
from lrqat import optional_libraries
from lrqat.atomic_files import write_json
from lrqat.errors import UserError, refusing
from lrqat.evaluation.text import window_bos
from lrqat.foreign_files import refuse_irregular
from lrqat.models import hub
from lrqat.runtimes.genai_config import FILE_NAME, read_genai_config

_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip


def generate_tokens(folder: str | Path, prompt: str, count: int) -> tuple[list[int], list[int]]:
    """Continue `prompt` greedily with onnxruntime-genai.

    Args:
        folder: from the ONNX exporter.
        prompt: text.
        count: tokens to generate at most.

    Returns:
        Ids of the prompt as the runtime tokenised it, after BOS where the model's own tokenizer
        adds one, and ids of the continuation.

    Raises:
        RuntimeUnavailableError: onnxruntime-genai is not installed.
        UserError: it cannot load the folder.
    """
    genai = _library()
    bos = window_bos(hub.load_tokenizer(folder)) if Path(folder).is_dir() else None
    with _opened(genai, folder) as model:
        ids = [int(i) for i in genai.Tokenizer(model).encode(prompt)]
        # The runtime's encode never adds BOS (chat templates spell it out), so we do.
        ids = ids if bos is None else [bos, *ids]
        return ids, _continue(genai, model, ids, count)


def continue_tokens(folder: str | Path, tokens: Sequence[int], count: int) -> list[int]:
    """As `generate_tokens`, from tokens: the ids of the continuation."""
    genai = _library()
    with _opened(genai, folder) as model:
        return _continue(genai, model, list(tokens), count)


def generate(folder: str | Path, prompt: str, count: int) -> str:
    """As `generate_tokens`, but the continuation as text, by the runtime's own tokenizer."""
    genai = _library()
    _, continuation = generate_tokens(folder, prompt, count)
    with _opened(genai, folder) as model:
        return genai.Tokenizer(model).decode(continuation)


@contextmanager
def _opened(genai: Any, folder: str | Path) -> Iterator[Any]:
    """The model of a folder, loaded by a configuration of ours.

    Warns of what the folder's own configuration says and the runtime was not told.

    Raises:
        UserError: the folder cannot be loaded, or what is done inside fails in the runtime.
    """
    if not Path(folder).is_dir():
        raise UserError(f"onnxruntime-genai cannot run {folder}: it is no folder; check the path")
    with tempfile.TemporaryDirectory(prefix="lrqat-") as made:
        left_out = _stage(Path(folder), Path(made))
        if left_out:
            warnings.warn(
                f"{Path(folder) / FILE_NAME} says {', '.join(left_out)}, which onnxruntime-genai "
                "is not told here: no library, file or device that a folder names is used",
                stacklevel=2,
            )
        with refusing(
            UserError, f"onnxruntime-genai cannot run {folder}", "export the folder again"
        ):
            yield genai.Model(made)


def _stage(folder: Path, staging: Path) -> list[str]:
    """Put what the runtime needs of `folder` into `staging`; returns what it is not told."""
    refuse_irregular(folder)
    config, left_out = read_genai_config(folder)
    write_json(staging / FILE_NAME, config)
    files = [folder / MODEL, *data_files(read_model(folder), folder)]
    files += [folder / name for name in _TOKENIZER if (folder / name).is_file()]
    for file in files:
        target = staging / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(file.resolve(), target)
    return left_out


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError:  # not everybody may make links everywhere
        shutil.copyfile(source, target)


def _continue(genai: Any, model: Any, ids: list[int], count: int) -> list[int]:
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + count, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(i) for i in generator.get_sequence(0)][len(ids) :]


def _library() -> Any:
    return optional_libraries.load("onnxruntime_genai", "lrqat[onnx]")
