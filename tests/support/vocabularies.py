"""Vocabularies of tokenizers that were just made, opened in llama.cpp without a model."""

import json

import pytest
from gguf import GGUFWriter

from exporters.gguf.vocabulary import TokenizerFiles, load_vocabulary
from lrqat.errors import RuntimeUnavailableError


def vocabulary_of(tokenizer, folder, size=None, pre=None, **settings):
    """The vocabulary of a folder that holds `tokenizer`, as the exporter reads it."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    size = size or tokenizer.get_vocab_size()
    return load_vocabulary(TokenizerFiles.open(folder, {}), size, pre)


def opened(vocabulary, path):
    """llama.cpp's tokenizer for it."""
    from lrqat.runtimes.llama_cpp.runtime import LlamaCpp

    writer = GGUFWriter(path, "llama")
    for entry in vocabulary.metadata():
        writer.add_key_value(entry.key, entry.value, entry.type, entry.item)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    try:
        return LlamaCpp.open_vocabulary(path)
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))


def differing(llama, tokenizer, texts, parse_special=False):
    """The texts of which llama.cpp makes other tokens than Hugging Face."""
    return [
        text
        for text in texts
        if llama.tokenize(text, False, parse_special)
        != tokenizer.encode(text, add_special_tokens=False).ids
    ]
