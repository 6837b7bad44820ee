"""Small models that have really learned something, for the proofs."""

import pytest


@pytest.fixture(scope="session")
def base_model(text, tmp_path_factory):
    """Folder of a small Llama: 80 steps on Python source."""
    from lrqat.models.small_llama import make_tokenizer, make_untrained_model, train_base_model
    from lrqat.training.data.documents import pack

    folder = tmp_path_factory.mktemp("base") / "small-llama"
    tokenizer = make_tokenizer([text], vocabulary=512)
    model = make_untrained_model(
        len(tokenizer), hidden=128, intermediate=256, layers=2, heads=4, kv_heads=2, seed=0
    )
    blocks = pack(iter([text]), tokenizer, length=128, needed_tokens=0)
    train_base_model(
        model, blocks, steps=80, batch_size=8, learning_rate=5e-3, folder=folder / "trainer"
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def train_on(base_model, text_file, tmp_path_factory):
    """Function of a grid and other settings -> folder of a checkpoint trained for 20 steps."""
    from lrqat.training.config import TrainConfig
    from lrqat.training.run import train

    made = {}

    def make(grid, **settings):
        key = (grid, *sorted(settings.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("trained") / grid
            config = TrainConfig(
                model=str(base_model),
                data=str(text_file),
                output=str(made[key]),
                grid=grid,
                steps=20,
                batch_size=4,
                sequence_length=64,
                rank=8,
                context=128,
                teacher="self",
                stages="model",
                **settings,
            )
            assert train(config).changed > 0
        return made[key]

    return make
