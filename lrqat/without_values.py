"""Models on the meta device, whose tensors have shapes and no values."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class WithoutValues(TorchFunctionMode):
    """Inside, a question about the values of a meta tensor is answered with yes.

    The one that transformers asks is whether all of a row is one text. Whether a value is among
    others, as it asks of padding (GPT-2's `pad_token_id`), is answered with no.

    Args:
        answers: what else cannot be computed without values, and what is computed instead.
    """

    def __init__(self, answers: Mapping[Any, Callable[..., Any]] | None = None) -> None:
        super().__init__()
        self._answers = {
            Tensor.__bool__: lambda _: True,
            Tensor.__contains__: lambda *_: False,
            **(answers or {}),
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        answer = self._answers.get(func)
        meta = args and isinstance(args[0], Tensor) and args[0].is_meta
        return (answer if answer and meta else func)(*args, **(kwargs or {}))
