"""The settings of a run's model: where it comes from, and where it computes."""

from dataclasses import dataclass, field
from functools import cached_property

from lrqat.settings import AUTO, Group, about, one_of, option

DTYPES = (AUTO, "float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Group):
    """The model, and where it computes."""

    title = "model"

    model: str = field(metadata=about("model folder, .gguf file or Hugging Face hub id"))
    tokenizer: str | None = option(
        "folder or hub id of the tokenizer, if not the model's own", None
    )
    adapter: tuple[str, ...] = option(
        "folder of a PEFT LoRA adapter, merged into the model before anything else; FOLDER:0.5 for "
        "half of it; several add up",
        (),
    )
    text_model: bool = option(
        "of a model that takes images or sound too, the language model inside it alone", False
    )
    dtype: str = option(
        "compute type of the steps; auto: bfloat16 on GPUs, and on CPUs that are faster with it "
        "for models stored so, else float32; results are measured in float32 whatever this is",
        AUTO,
        one_of(DTYPES),
    )
    device: str = option(
        "auto (cuda where there is one, else cpu), cpu, cuda, or mps on a Mac", AUTO
    )
    streamed: bool = option(
        "read, round and drop the weights one at a time; the model is never whole in memory", False
    )
    trust_remote_code: bool = option("run Python code that the model brings", False)

    @cached_property
    def source(self) -> str:
        """What weights are read from: `model`, or the folder of the text model inside it.

        Raises:
            ModelError: there is none.
        """
        if not self.text_model:
            return self.model
        from lrqat.models.nested import text_folder

        return str(text_folder(self.model, trust_remote_code=self.trust_remote_code))
