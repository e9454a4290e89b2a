"""The report as a page: what it says, and that nothing in it comes from anywhere else."""

from __future__ import annotations

import builtins
import json
import re
from math import inf, nan
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur import Config, Pruner, drop_blocks, prune
from secateur.errors import FileError, MissingExtraError
from secateur.repair.report import Distance, Refit, Repair
from secateur.report import Report, read, report_of, to_markdown, write, write_page
from secateur.report.facts import GoalFact
from secateur.report.figures import headline
from secateur.report.page import to_html
from secateur.runtime.measure import Latency
from tests.report import repaired


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten()
    )


@pytest.fixture(scope="module")
def report() -> Report:
    """Return a report in which every section has something to show."""
    torch.manual_seed(0)
    dense, example = network(), torch.randn(2, 3, 8, 8)
    result = prune(dense, example, sparsity=0.5)
    result.repair = repaired("3.weight", "5.weight")
    return report_of(
        result,
        dense,
        latency={
            "before": Latency(2.0, 1.9, 2.2, 15, 1),
            "after": Latency(1.0, 0.9, 1.1, 15, 1),
        },
        scores={"before": {"accuracy, %": 91.5}, "after": {"accuracy, %": 90.25}},
        history=[{"step": n, "sparsity": n / 4, "loss": 1 / n} for n in range(1, 4)],
        config={"sparsity": 0.5, "exclude": ["<script>alert(1)</script>"]},
        reproduce="secateur prune net.py:Net --sparsity 0.5",
    )


def test_page_when_written_then_holds_the_facts(report: Report) -> None:
    page = to_html(report)
    for words in ("8 → <b>4</b>", "exact", "91.50", "2.00× as fast", "secateur prune net.py:Net"):
        assert words in page
    assert page.count('class="curve"') == 2


def test_page_when_repaired_then_each_readers_error_before_and_after_and_the_models(
    report: Report,
) -> None:
    page = to_html(report)
    assert "off by 6.7 % of their spread; without the repair it was 42 %" in page
    assert "diverge by 0.0123 nats in the mean, from 0.31" in page
    assert "25 % → <b>0.5 %</b>" in page
    assert 'title="12 rows are too few for 64 features"' in page
    assert "estimated batch norms again" in page
    assert "not.measured" not in page
    assert "Repair `least_squares`: On inputs that were held out" in to_markdown(report)
    assert "What stays makes up for it" not in to_html(report.model_copy(update={"repair": None}))


@pytest.mark.parametrize("unknown", [nan, inf])
def test_page_when_nothing_was_held_out_then_it_says_so(unknown: float) -> None:
    dense = network()
    result = prune(dense, torch.randn(2, 3, 8, 8), sparsity=0.5)
    nothing = Distance(unknown, unknown)
    result.repair = Repair("bias", (Refit("3.weight", unknown, unknown, 0.1, 8),), nothing, nothing)
    found = Report.from_text(report_of(result, dense).to_text(), "here")
    assert found.repair is not None
    assert found.repair.after.error is found.repair.refits[0].after is None
    assert "No batch was left over" in to_html(found)


def test_page_when_opened_then_needs_nothing_from_anywhere(report: Report) -> None:
    page = to_html(report)
    assert not re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?!data:)[a-z/]', page)
    assert "<script" not in page
    assert "default-src 'none'" in page


def test_page_when_facts_hold_markup_then_it_is_shown_as_text(report: Report) -> None:
    assert "&lt;script&gt;alert(1)" in to_html(report)
    named = report.model_copy(
        update={"structure": report.structure.model_copy(update={"model": "<b>&Net</b>"})}
    )
    assert "&lt;b&gt;&amp;Net&lt;/b&gt;" in to_html(named)


def test_page_when_there_is_little_to_show_then_only_that(report: Report) -> None:
    bare = report.model_copy(
        update={
            "check": None,
            "history": (),
            "config": {},
            "reproduce": "",
            "before": report.before.model_copy(update={"latency": None, "scores": {}}),
        }
    )
    page = to_html(bare)
    assert "not checked" in page
    for absent in ("On the way", "<h2>Latency", "Is it the masked", "<pre>", "accuracy"):
        assert absent not in page


def test_report_when_written_and_read_then_equal_and_page_follows_it(
    report: Report, tmp_path: Path
) -> None:
    page = write(tmp_path, report)
    first = page.read_text()
    assert read(tmp_path) == report
    assert write_page(tmp_path, read(tmp_path)).read_text() == first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no report"),
        ("{}", "is no report"),
        ('{"schema": 1, "evil": 1}', "is no report"),
    ],
)
def test_read_when_file_is_no_report_then_error_names_it(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(FileError, match=words):
        read(tmp_path)


def test_read_when_schema_is_newer_then_says_to_upgrade(report: Report, tmp_path: Path) -> None:
    newer = json.loads(report.to_text()) | {"schema": 99}
    (tmp_path / "report.json").write_text(json.dumps(newer))
    with pytest.raises(FileError, match="upgrade"):
        read(tmp_path)


def test_report_when_pruned_in_a_loop_then_tensors_say_what_is_masked() -> None:
    model = network()
    pruner = Pruner(
        model, Config(sparsity=0.5, granularity="element", names=["0"]), torch.zeros(2, 3, 8, 8)
    )
    pruner.step()
    found = report_of(pruner.finish(), network())
    assert {t.name: t.masked for t in found.tensors}["0.weight"] == 0.5
    assert "Masked, not cut" in to_html(found)


def test_markdown_when_drawn_then_says_the_same(report: Report) -> None:
    text = to_markdown(report)
    assert "| accuracy, % | 91.50 | 90.25 | −1.25 |" in text
    assert "| `0` | 8 | 4 | −50 % |" in text
    assert "every removal is exact" in text


def test_page_when_jinja2_is_missing_then_facts_are_kept_and_the_extra_is_named(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_jinja2(name: str, *rest: object) -> object:
        if name == "jinja2":
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_jinja2)
    with pytest.raises(MissingExtraError, match=r"secateur\[report\]"):
        write(tmp_path, report)
    assert read(tmp_path) == report


class Residual(nn.Module):
    """Adds something to its input, (n, 8) → (n, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


def test_page_when_a_block_was_dropped_then_it_is_named_and_its_layers_say_so() -> None:
    dense = nn.Sequential(nn.Linear(4, 8), Residual(), Residual(), nn.Linear(8, 2))
    example = torch.rand(3, 4)
    found = report_of(drop_blocks(dense, ["1"], example), dense)
    assert [b.name for b in found.structure.blocks if b.dropped] == ["1"]
    page = to_html(found)
    assert "<b>dropped whole</b> 1" in page
    assert "8×8 → <b>dropped</b>" in page


@pytest.mark.parametrize(
    ("low", "said"), [(0.9, "2.00× as fast."), (0.5, "2.00× as fast, within the spread.")]
)
def test_headline_when_ranges_of_timings_overlap_then_it_claims_nothing(
    report: Report, low: float, said: str
) -> None:
    slow = Latency(2.0, low + 0.5, 2.2, 15, 1)
    fast = Latency(1.0, low, 1.3, 15, 1)
    sides = {
        "before": report.before.model_copy(update={"latency": slow}),
        "after": report.after.model_copy(update={"latency": fast}),
    }
    assert headline(report.model_copy(update=sides)).endswith(said)


def test_page_when_opened_then_its_head_answers_in_the_order_of_a_printed_result(
    report: Report,
) -> None:
    head, _, _ = to_html(report).partition("</header>")
    words = ["<b>exact</b>", "<b>distance from dense</b> 6.7 %", "Loads with:", "Next:"]
    places = [head.index(word) for word in words]
    assert places == sorted(places)
    goal = GoalFact(of="macs", asked="50 %", dense="2 M", reached="1 M", gone=0.5, met=False)
    page = to_html(report.model_copy(update={"goals": (goal,), "repair": None}))
    assert page.index("<b>goal missed</b> macs") < page.index("<b>exact</b>")
    assert "distance from dense: not measured" in page
