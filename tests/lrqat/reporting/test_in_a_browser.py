"""The page in headless Chromium: two widths, light and dark. Skipped where there is no Chromium."""

import io

import matplotlib.image
import numpy as np
import pytest

from lrqat.reporting.page import render
from lrqat.reporting.sources import gather
from tests.support.browser import browser, find_chromium
from tests.support.report_parts import (
    HOSTILE,
    frontier_of,
    parity_of,
    token,
    tokens_of,
    training_of,
    written,
)

WIDTHS = (390, 1200)
LEAST_CONTRAST = 4.5  # WCAG 2.1, level AA, of text of any size
# Of every element with a text of its own: contrast of that text with what is behind it.
CONTRASTS = """
(() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.body.querySelectorAll("*")) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || node.closest("script, style") || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const ink = parse(node.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(node))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), node.textContent.slice(0, 40)]);
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium here")
    with browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A report with all its parts, and with what nobody should trust in all of them."""
    folder = tmp_path_factory.mktemp("report")
    long = "a-very-long-name-without-a-single-place-to-break-it-" * 3
    kls = (0.001, 0.02, 0.05, 0.2, 0.5, 2.0, 5.0)  # every colour
    tokens = [token(f" word{n}", kl, position=n) for n, kl in enumerate(kls)]
    tokens += [token(each, 0.7, window=1, guesses=(each, long, "\n")) for each in (*HOSTILE, long)]
    parts = written(
        folder,
        tokens=tokens_of(tokens, file=HOSTILE[0], leading=[long, HOSTILE[1]]),
        more=tokens_of(tokens[:7], file=long),
        parity=parity_of(file=long, failures=[HOSTILE[1]]),
        frontier=frontier_of(),
        training=training_of(),
    )
    made = folder / "report.html"
    made.write_text(render(gather(parts, None, lambda items: items)), encoding="utf-8")
    return made


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_can_be_read(page, path, width, dark, tmp_path):
    page.open(path, width=width, dark=dark)
    page.evaluate("document.querySelectorAll('details').forEach((part) => part.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert min(contrasts)[0] >= LEAST_CONTRAST, min(contrasts)
    wrong = ("Runtime.exceptionThrown", "Log.entryAdded")
    assert not [event for event in page.events if event.get("method") in wrong]
    assert page.evaluate("window.hacked ?? null") is None
    asked = [e["params"]["request"]["url"] for e in page.events
             if e.get("method") == "Network.requestWillBeSent"]  # fmt: skip
    assert asked == [path.resolve().as_uri()]
    image = matplotlib.image.imread(io.BytesIO(page.screenshot()))[..., :3]
    assert image.shape[1] <= width
    assert (np.median(image) < 0.2) == dark
    assert image.std() > 0.05, "there is more than paper"


def test_a_tap_shows_what_both_would_have_said(page, path):
    page.open(path, width=390, dark=False)
    detail = "document.getElementById('detail')"
    assert page.evaluate(f"{detail}.hidden")
    page.evaluate("document.querySelector('.text .k6').click()")
    shown = page.evaluate(f"{detail}.innerText")
    assert "KL 5 nats" in shown
    assert shown.index("Base") < shown.index("Model")
    assert "50.0%" in shown
    assert "12.5%" in shown
    box = page.evaluate(f"{detail}.getBoundingClientRect().toJSON()")
    assert box["left"] >= 0
    assert box["right"] <= 390
    keys = "new KeyboardEvent('keydown', {key: 'ArrowLeft', bubbles: true})"
    page.evaluate(f"document.querySelector('.text').dispatchEvent({keys})")
    assert "KL 2 nats" in page.evaluate(f"{detail}.innerText")
    page.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    assert page.evaluate(f"{detail}.hidden")


def test_without_a_script_all_tokens_are_there(page, path):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(path, width=1200, dark=False)
        document = page.call("DOM.getDocument")["root"]["nodeId"]
        found = page.call("DOM.querySelectorAll", nodeId=document, selector=".text > span")
        assert len(found["nodeIds"]) >= 13
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
