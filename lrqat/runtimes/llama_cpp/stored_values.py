"""The reference with the floating tensors of a GGUF file whose types round them.

An embedding or head that nobody trained may be exported in Q8_0 or Q6_K, and matrices that stay
floating in F16 or BF16, because the user asked for it. What that costs is the user's choice, which
the plan shows, and no difference between the file and what it is an export of: the reference gets
the same rounding, of the checkpoint's own values; L0 says that the file holds just these.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lrqat.checkpoint.reader import Checkpoint


@contextmanager
def as_stored(model: Any, path: Path, checkpoint: Checkpoint) -> Iterator[None]:
    """`model`, a reference of `checkpoint`, rounded as the GGUF file `path` is.

    Raises:
        ExportRefusedError: a tied table that the file has twice, in two types.
    """
    from exporters import gguf

    parameters = dict(model.named_parameters())
    exact = {}
    try:
        for name, rounded in gguf.rounded_tensors(path, checkpoint):
            exact[name] = parameters[name].data
            parameters[name].data = torch.from_numpy(rounded)
        yield
    finally:
        for name, values in exact.items():
            parameters[name].data = values
