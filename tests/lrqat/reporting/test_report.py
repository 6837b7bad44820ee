"""What a report says is what was given to it, and what it cannot read it refuses."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from exporters import gguf
from lrqat.checkpoint.publishing import REPORT
from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import evaluate, report
from lrqat.errors import OutputError, UserError
from lrqat.models.reference import load_reference
from lrqat.reporting.heat_map import share_of_worst, windows_of, worst_of
from lrqat.reporting.page import render
from lrqat.reporting.sources import gather
from lrqat.training.config import TrainConfig
from lrqat.training.run import train
from tests.support.report_parts import (
    HOSTILE,
    frontier_of,
    parity_of,
    token,
    tokens_of,
    training_of,
    written,
)


class Reader(HTMLParser):
    """What a browser makes of a page: its texts, and whatever could run or load something."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.scripts, self.tags, self.attributes = [], [], [], []
        self._in = None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self._in = (tag, dict(attributes).get("type"))
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "script":
            self.scripts.append(dict(attributes).get("type"))

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in not in (("style", None), ("script", None)):
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def same(items):
    return items


def read(*paths, base=None):
    return gather(list(map(str, paths)), base, same)


def test_everything_that_was_given_is_there_before_any_plot(tmp_path):
    paths = written(
        tmp_path,
        tokens=tokens_of([token(" one", 0.25), token(" two", 3.5, position=6)]),
        parity=parity_of(),
        frontier=frontier_of(),
        training=training_of(),
    )
    page = render(read(*paths))
    summary = Reader(page[: page.index("<figure")]).text
    for said in ("4.15 MB", "24.38", "23.12", "1.875", "75%", "L0 pass", "L1 pass", "L2 pass",
                 "19.75", "0.125", "87.5%"):  # fmt: skip
        assert said in summary, said
    text = Reader(page).text
    for said in ("KL against size", "Error of each block", "Loss", "Rates", "KL of single tokens"):
        assert said in text
    assert "--target-size" in text[text.index("Not in this report") :]
    assert "--frontier" not in text[text.index("Not in this report") :]


def test_a_failed_proof_is_said_first(tmp_path):
    page = render(read(*written(tmp_path, parity=parity_of(failures=["L2: it is off"]))))
    summary = Reader(page[: page.index('id="proofs"')]).text
    assert "FAILS" in summary
    assert "L2 FAIL" in summary
    assert "L2: it is off" in Reader(page).text


def test_hostile_names_and_texts_are_texts(tmp_path):
    each = " ".join(HOSTILE)
    tokens = [token(each, 5.0, guesses=(each, each, each)), token("x", 0.1)]
    paths = written(
        tmp_path,
        tokens=tokens_of(tokens, file=each, base=each, leading=[each]),
        parity=parity_of(file=each, failures=[each]),
        frontier=frontier_of(recipe=each),
        training=training_of(name=each),
    )
    found = Reader(render(read(*paths), title=each))
    assert found.scripts.count(None) == 1
    assert set(found.scripts) == {None, "application/json"}
    assert not {"img", "iframe", "object", "link", "base", "form"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    links = [v for n, v in found.attributes if n in ("src", "href", "xlink:href", "action")]
    assert all(link.startswith("#") for link in links)
    shown = re.sub(r"\s+", " ", each.replace("\u202e", "\ufffd"))
    assert found.text.count(shown) >= 10
    assert "\u202e" not in found.text


def test_the_worst_come_first(tmp_path):
    rng = np.random.default_rng(0)
    tokens = [
        token(f"t{w}.{p}", float(kl), window=w, position=p)
        for w in range(20)
        for p, kl in enumerate(rng.exponential(size=7) * (1 + w % 5))
    ]
    (found,) = read(*written(tmp_path, tokens=tokens_of(tokens))).tokens
    kls = np.array([t["kl"] for t in tokens]).reshape(20, 7)
    windows = windows_of(found)
    assert [w.number for w in windows] == list(np.argsort(-kls.mean(1))[: len(windows)])
    assert [spot.text for spot in windows[0].spots][2] == f"t{windows[0].number}.2"
    worst = worst_of(found)
    assert [w.token.kl for w in worst] == sorted(kls.ravel())[::-1][: len(worst)]
    assert share_of_worst(found, 0.1) == pytest.approx(np.sort(kls.ravel())[-14:].sum() / kls.sum())


def test_a_measurement_from_elsewhere_finds_its_model(tmp_path, make_fused):
    checkpoint = Checkpoint.open(make_fused("q4_0"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        gguf.write(gguf.plan(checkpoint), tmp_path / name / f"{name}.gguf")
    paths = written(tmp_path, parity=parity_of(file="gone/b.gguf"))
    page = render(read(tmp_path / "a" / "a.gguf", tmp_path / "b" / "b.gguf", *paths))
    rows = page[: page.index('id="proofs"')].split('<tr role="row">')[2:]
    assert [("L0 pass" in row, "b.gguf" in row) for row in rows] == [(False, False), (True, True)]


@pytest.mark.parametrize("grid", ["q4_0", "iq4_nl", "int4-asym-g32"])
def test_errors_of_weights_are_those_of_the_loaded_models(grid, make_fused, tiny_model):
    folder = make_fused(grid)
    (model,) = read(folder, base=str(tiny_model)).models
    ours = load_reference(Checkpoint.open(folder)).state_dict()
    base = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    assert len(model.layers) == len(Checkpoint.open(folder).quantized_names)
    for layer in model.layers:
        name = f"{layer.name}.weight"
        difference = (ours[name].double() - base[name].double()).square().sum()
        assert layer.error == pytest.approx(float(difference / base[name].double().square().sum()))
        assert sum(layer.integers) == pytest.approx(1)
        q = Checkpoint.open(folder).quantized(layer.name).q
        assert max(layer.integers) == pytest.approx(
            np.unique(q, return_counts=True)[1].max() / q.size
        )


def test_a_file_of_anybody_has_the_errors_of_its_checkpoint(make_fused, tiny_model, tmp_path):
    folder = make_fused("q4_0")
    gguf.write(gguf.plan(Checkpoint.open(folder)), tmp_path / "x.gguf")
    checkpoint, file = read(folder, tmp_path / "x.gguf", base=str(tiny_model)).models
    errors = {layer.name: layer.error for layer in checkpoint.layers}
    of_file = {layer.name: layer.error for layer in file.layers}
    assert errors.keys() <= of_file.keys()
    for name, error in errors.items():  # read back in bfloat16
        assert of_file[name] == pytest.approx(error, rel=1e-3)


def test_a_run_is_told_from_its_report_and_else_from_its_states(tiny_model, text_file, tmp_path):
    run = tmp_path / "run"
    config = TrainConfig(
        model=str(tiny_model), data=str(text_file), output=str(run), stages="model", steps=4,
        batch_size=1, sequence_length=64, rank=4, context=64, eval_windows=2, importance_tokens=512,
    )  # fmt: skip
    train(config)
    said = json.loads((run / REPORT).read_text())
    (ended,) = read(run).models
    assert ended.training.finished
    assert list(ended.training.history) == said["history"]
    assert len(said["history"]) == 4
    peaks = config.resolved().rates
    for row in said["history"][:-1]:  # the last has come down to zero
        share = row["rate_scale"] / peaks["scale"]
        assert 0 < share <= 1
        assert row["rate_low_rank"] == pytest.approx(share * peaks["low_rank"])
    shares = [(x.changed, x.weights) for x in ended.layers]
    total = sum(share * count for share, count in shares) / sum(count for _, count in shares)
    assert total == pytest.approx(said["changed"], rel=1e-6)
    assert all(x.error for x in ended.layers), "the base that the run names is on this machine"
    (run / REPORT).unlink()
    (run / "lrqat.json").unlink()
    (stopped,) = read(run).models
    assert not stopped.training.finished
    assert list(stopped.training.history) == said["history"]
    assert "has not ended" in render(read(run))


def test_the_command_measures_what_evaluate_measures(make_fused, tiny_model, text_file, tmp_path):
    gguf.write(gguf.plan(Checkpoint.open(make_fused("q4_0"))), tmp_path / "x.gguf")
    asked = ["--base", str(tiny_model), "--data", str(text_file), "--context", "64"]
    asked += ["--windows", "2"]
    tokens = tmp_path / "tokens.json"
    assert evaluate.main([str(tmp_path / "x.gguf"), *asked, "--tokens", str(tokens)]) == 0
    (expected,) = read(tokens).tokens
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    given = [[str(tokens)], asked]
    for page, more in zip(pages, given, strict=True):
        arguments = [str(tmp_path / "x.gguf"), *more, "--output", str(page)]
        assert report.main(arguments) == 0
        text = page.read_text()
        assert text.count('<details class="window"') == 2
        assert f"{expected.kl:.4g}" in Reader(text).text
        windows = windows_of(expected)
        assert json.dumps(windows[0].details[0][0]) in text
    with pytest.raises(OutputError, match="--overwrite"):
        report.main([str(tokens), "--output", str(pages[0])])


def test_what_is_no_part_of_a_report_is_refused(tmp_path):
    (tmp_path / "x.txt").write_text("a text")
    other, broken, wrong = written(
        tmp_path, other={"a": 1}, broken={"per_token": [{"kl": "x"}]}, wrong={"frontier": [3]}
    )
    timeless, *_ = written(tmp_path, timeless=training_of() | {"history": [{"loss": 1.0}]})
    for path, reason in (
        (tmp_path / "none", "nothing at"), (tmp_path / "x.txt", "evaluate --tokens"),
        (other, "is nothing that a report"), (broken, "'kl' is no number"),
        (wrong, "is no object"), (timeless, "'step' is no number"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=re.escape(reason)):
            read(path)
    with pytest.raises(UserError, match="--base"):
        report.main([other, "--data", str(tmp_path / "x.txt")])
