"""Bytes of the whole file, before there is one."""

import pytest

from exporters import gguf
from lrqat.budget.file_bytes import other_bytes
from lrqat.byte_sizes import parse_size
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import UserError
from lrqat.models import hub
from lrqat.models.surgery import plan_surgery


def test_it_is_within_a_hundredth_of_what_the_exporter_writes(make_fused, tiny_model, tmp_path):
    model = hub.meta_model(hub.load_config(str(tiny_model)))
    surgery = plan_surgery(model, "q4_0")
    expected = other_bytes(model, surgery, hub.load_tokenizer(tiny_model))
    expected += sum(target.nbytes for target in surgery.quantized.values())
    path = tmp_path / "model.gguf"
    gguf.write(gguf.plan(Checkpoint.open(make_fused("q4_0")), gguf.Options(float_type="f16")), path)
    # The random head and embedding are float32; a model that is trained has them in 16 bits.
    assert path.stat().st_size == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("text", "nbytes"), [("70MB", 70_000_000), ("64MiB", 64 << 20), ("1.5 gb", 1_500_000_000),
                         ("900k", 900_000), ("123", 123), (" 3g ", 3 * 10**9), ("500M", 5 * 10**8)]
)  # fmt: skip
def test_sizes_are_read_as_people_write_them(text, nbytes):
    assert parse_size(text, "--target-size") == nbytes


@pytest.mark.parametrize("text", ["", "MB", "-3MB", "0", "70 miles", "1e9", "9" * 40])
def test_what_is_no_size_is_named(text):
    with pytest.raises(UserError, match=r"--target-size .* is no size; write 70MB"):
        parse_size(text, "--target-size")
