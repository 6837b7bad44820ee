"""ONNX Runtime GenAI: text from an exported folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrqat.errors import RuntimeUnavailableError, UserError
from lrqat.evaluation.text import window_bos
from lrqat.models import hub


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
    try:
        model = genai.Model(str(folder))
        ids = [int(i) for i in genai.Tokenizer(model).encode(prompt)]
        # The runtime's encode never adds BOS (chat templates spell it out), so we do.
        ids = ids if bos is None else [bos, *ids]
        return ids, _continue(genai, model, ids, count)
    except RuntimeError as error:
        raise UserError(f"onnxruntime-genai cannot run {folder}: {error}") from None


def continue_tokens(folder: str | Path, tokens: Sequence[int], count: int) -> list[int]:
    """As `generate_tokens`, from tokens: the ids of the continuation."""
    genai = _library()
    try:
        return _continue(genai, genai.Model(str(folder)), list(tokens), count)
    except RuntimeError as error:
        raise UserError(f"onnxruntime-genai cannot run {folder}: {error}") from None


def generate(folder: str | Path, prompt: str, count: int) -> str:
    """As `generate_tokens`, but the continuation as text, by the runtime's own tokenizer."""
    genai = _library()
    _, continuation = generate_tokens(folder, prompt, count)
    return genai.Tokenizer(genai.Model(str(folder))).decode(continuation)


def _continue(genai: Any, model: Any, ids: list[int], count: int) -> list[int]:
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + count, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(i) for i in generator.get_sequence(0)][len(ids) :]


def _library() -> Any:
    try:
        import onnxruntime_genai
    except ImportError:
        raise RuntimeUnavailableError(
            "onnxruntime-genai is not installed: pip install 'lrqat[onnx]'"
        ) from None
    return onnxruntime_genai
