"""The report in a real browser: silent, offline, readable on a phone and a desk, light and dark.

``SECATEUR_SCREENSHOTS=folder`` keeps the pictures, to look at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur import prune
from secateur.demo.digits import DigitsNet
from secateur.report import report_of, write
from secateur.runtime.measure import Latency

from . import repaired
from .browser import CHROMIUM, Browser, browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]

CLIPPED = """[...document.querySelectorAll('body *')].filter(e =>
  e.getClientRects().length && !(e instanceof SVGElement) && !e.title && (
    (e.clientWidth && e.scrollWidth > e.clientWidth + 1) ||
    e.getBoundingClientRect().right > innerWidth + 1)).map(e => e.outerHTML)"""
# What has a title is shortened on purpose, with an ellipsis, and shows its whole text on demand.

FAINT = """(() => {
  const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; }
    return [255, 255, 255]; };
  return [...document.querySelectorAll('body *')].filter(e => e.getClientRects().length &&
    [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
      const s = getComputedStyle(e), a = light(rgb(s.color)), b = light(behind(e));
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), parseFloat(s.fontSize),
              e.textContent]; }).filter(([c, size]) => c < 4.5 || size < 12);
})()"""


class Deep(nn.Module):
    """Names as long as those of a real transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {
                f"attention_output_layer_normalisation_{n}": nn.Sequential(
                    nn.Linear(16, 300), nn.ReLU(), nn.Linear(300, 16)
                )
                for n in range(40)
            }
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for each in self.encoder.values():
            x = x + each(x)
        return x


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return two pages: one with every section, one with long names and many rows."""
    folder = tmp_path_factory.mktemp("pages")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense, deep = DigitsNet(), Deep()
    times = {"before": Latency(379, 350, 392, 15, 1), "after": Latency(159, 139, 178, 15, 1)}
    smaller = prune(dense, torch.rand(1, 1, 8, 8), sparsity=0.7, of="macs")
    smaller.repair = repaired(*(n for n, p in dense.named_parameters() if p.dim() > 1))
    full = report_of(
        smaller,
        dense,
        latency=times,
        scores={"before": {"accuracy, %": 99.67}, "after": {"accuracy, %": 99.33}},
        history=[
            {"step": n, "sparsity": 0.46 * (n > 20), "accuracy, %": 99 - 60 / n, "loss": 2 / n}
            for n in range(1, 36)
        ],
        config={"sparsity": 0.7, "of": "macs"},
        reproduce="secateur demo --seed 0",
    )
    narrow = prune(deep, torch.rand(1, 16), sparsity=0.5)
    narrow.repair = repaired(*(n for n, p in deep.named_parameters() if p.dim() > 1))
    long = report_of(narrow, deep)
    return {name: write(folder / name, r) for name, r in (("full", full), ("long", long))}


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.parametrize("page", ["full", "long"])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_when_opened_then_silent_offline_and_readable(
    chromium: Browser, pages: dict[str, Path], page: str, width: int, scheme: str
) -> None:
    chromium.open(pages[page], width=width, scheme=scheme)
    chromium.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    if folder := os.environ.get("SECATEUR_SCREENSHOTS"):
        chromium.screenshot(Path(folder) / f"{page}-{width}-{scheme}.png")
    assert chromium.complaints == []
    assert set(chromium.requests) == {pages[page].resolve().as_uri()}
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.evaluate(CLIPPED) == []
    assert chromium.evaluate(FAINT) == []
    dark = chromium.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 23)"
    assert dark == (scheme == "dark")
