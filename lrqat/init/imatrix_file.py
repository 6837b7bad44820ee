"""The importance of input channels from a file that llama.cpp's `llama-imatrix` wrote.

It is the mean of x_j^2 over tokens, what `lrqat.init.importance` measures. The file names tensors
as llama.cpp does, as `blk.0.attn_q.weight`, and they are found by Hugging Face names. For Llama and
Mistral, llama.cpp stores the rows of q and k in another order than Hugging Face; importance belongs
to the columns, whose order is the same, so nothing is permuted here.

The file forms are in `lrqat.init.imatrix_format`. Source: load_imatrix in
tools/quantize/quantize.cpp.
"""

import re
from collections.abc import Container, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrqat.errors import UserError
from lrqat.init.imatrix_format import Entry, Floats, ImatrixFileError, read_entries

# Some converters store an expert's gate and up as one tensor, some as two that read the same input.
_SAME_INPUT = {"ffn_gate_up_exps": "ffn_gate_exps"}


def read(
    path: Path | str, columns: Mapping[str, int], optional: Container[str] = ()
) -> dict[str, Tensor]:
    """Read the importance of some projections from a file of llama.cpp.

    The file holds the output head only if `llama-imatrix --process-output` wrote it and the head is
    not tied, and never an embedding: ask for projections.

    Args:
        path: the file, GGUF or legacy.
        columns: Hugging Face module name -> input features; for experts in one parameter, the name
            of the parameter.
        optional: names that the file may lack, and that are left out then.

    Returns:
        Name -> float32 (in,), or (experts, in); finite and >= 0. An expert that no token reached
        has ones, as llama-quantize gives it.

    Raises:
        ImatrixFileError: the file cannot be read, is damaged, lacks a projection, or has one of
            another size.
        UserError: the package `gguf` is missing, or llama.cpp has no name for a module.
    """
    path = Path(path)
    entries = read_entries(path)
    found: dict[str, Tensor] = {}
    for name, width in columns.items():
        possible = [f"{own}.weight" for own in llama_cpp_names(name)]
        present = [own for own in possible if own in entries]
        if not present and name in optional:
            continue
        if not present:
            raise ImatrixFileError(
                f"{path} has nothing for {name} ({' or '.join(possible)}); it was made from "
                "another model, or, for the output head, without --process-output"
            )
        if len(present) > 1:
            raise ImatrixFileError(f"{path} has two entries for {name}: {' and '.join(present)}")
        found[name] = torch.from_numpy(_mean(path, present[0], entries[present[0]], width))
    return found


def llama_cpp_names(name: str) -> list[str]:
    """What llama.cpp may call the tensor of a Hugging Face module, without ".weight".

    Architectures differ, so there can be more than one; a file has only one of them.

    Raises:
        UserError: the package `gguf` is missing, or it knows no such module.
    """
    try:
        from gguf import TENSOR_NAMES, TensorNameMap
    except ImportError:
        raise UserError(
            "reading an importance matrix needs the names of the package gguf; "
            "pip install 'lrqat[gguf]'"
        ) from None
    block = re.search(r"(?<=\.)\d+(?=\.)", name)
    number = block.group() if block else ""
    pattern = f"{name[: block.start()]}{{bid}}{name[block.end() :]}" if block else name
    # The tables of the class, not an instance: making one needs an architecture, and for some it
    # changes the tables for all.
    tables = (TensorNameMap.mappings_cfg, TensorNameMap.block_mappings_cfg)
    own = [TENSOR_NAMES[kind] for table in tables for kind in table if pattern in table[kind]]
    own += [text.replace(a, b) for text in own for a, b in _SAME_INPUT.items() if a in text]
    if not own:
        raise UserError(
            f"llama.cpp has no name for {name}, so its importance cannot be found in a file; "
            "leave it out, or measure the importance instead"
        )
    return [text.replace("{bid}", number) for text in dict.fromkeys(own)]


def _mean(path: Path, name: str, entry: Entry, width: int) -> Floats:
    sums, counts = entry
    for what, values in (("sums", sums), ("counts", counts)):
        if not np.isfinite(values).all() or (values < 0).any():
            raise ImatrixFileError(
                f"{path}: {name} has {what} that are negative or not finite; make the file again"
            )
    matrices, rest = divmod(sums.size, width)
    if rest or matrices < 1 or counts.size not in (1, matrices):
        raise ImatrixFileError(
            f"{path}: {name} has {sums.size} sums and {counts.size} counts, and the model's "
            f"projection has {width} inputs; use a file made from this model"
        )
    if not counts.any():
        raise ImatrixFileError(f"{path}: {name} was measured on no token; make the file again")
    tokens = counts.astype(np.float64)[:, None]
    mean = np.where(tokens > 0, sums.reshape(matrices, width) / np.where(tokens > 0, tokens, 1), 1)
    with np.errstate(over="ignore"):
        result = mean.astype(np.float32)
    if not np.isfinite(result).all():
        raise ImatrixFileError(f"{path}: {name} has means beyond float32; make the file again")
    return result[0] if matrices == 1 else result
