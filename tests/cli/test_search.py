"""``secateur search``: a folder with the best model, its study and its report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur import cli
from secateur.report import read

NETWORKS = Path(__file__).parent / "networks.py"
CONV = [f"{NETWORKS}:conv", "--input", "2,3,12,12"]
SEARCH = ["search", *CONV, "--evaluate", f"{NETWORKS}:size", "--trials", "3", "--sampler", "random"]
Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command and returns what it printed."""

    def command(*words: object, code: int = cli.DONE) -> str:
        status = cli.main([str(word) for word in words])
        printed = capsys.readouterr()
        assert status == code, printed.err
        return printed.out + printed.err

    return command


def test_search_when_done_and_called_again_then_goes_on_in_its_folder(
    run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    data = ["--data", f"{NETWORKS}:features"]
    said = run(*SEARCH, "--sparsity", "0.5", *data, "--out", out)
    assert "3 trials, at most 50.0% of macs left" in said
    first = read(out)
    assert first.after.macs <= 0.5 * first.before.macs
    assert [trial.slot for trial in first.search.trials] == [0, 1, 2]
    run(*SEARCH[:-3], "5", *SEARCH[-2:], "--sparsity", "0.5", *data, "--out", out)
    second = read(out)
    assert second.search.trials[:3] == first.search.trials
    assert len(second.search.trials) == 5
    compared = json.loads(run("compare", *CONV, out, "--json"))
    assert compared


def test_search_when_a_front_is_looked_for_then_the_report_draws_it(
    run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    words = [*SEARCH[:-1], "nsga2", "--storage", tmp_path / "mine.journal", "--name", "front"]
    assert "the front: " in run(*words, "--sparsity", "0.6", "--out", out)
    facts = read(out).search
    assert facts.fronts
    page = (out / "report.html").read_text()
    assert page.count('class="point ') == 3
    assert page.count('class="point best"') == 1
    assert "## The front" in run("report", out, "--markdown")
    assert not (out / "search.journal").exists()


def test_search_when_called_wrongly_then_says_what_is(run: Run, tmp_path: Path) -> None:
    rest = ["--sparsity", "0.5", "--out", tmp_path / "small"]
    words = [*SEARCH[:-1], "annealling", *rest]
    assert "Did you mean 'annealing'?" in run(*words, code=cli.FAILED)
    words = [*SEARCH, "--sampler-option", "x=1", *rest]
    assert "sampler_options: unknown 'x'" in run(*words, code=cli.FAILED)
    broken = ["search", *CONV, "--evaluate", f"{NETWORKS}:failing", *rest]
    assert "RuntimeError: no such data" in run(*broken, code=cli.FAILED)


def test_search_when_the_url_has_a_password_then_no_file_and_no_message_does(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite://me:secret@/{tmp_path}/studies.db"
    out = tmp_path / "small"
    words = [str(w) for w in (*SEARCH, "--sparsity", "0.5", "--storage", url, "--out", out)]
    said = run(*words, code=cli.FAILED)
    assert "secret" not in said
    monkeypatch.setattr("sys.argv", ["secateur", *words[:-4], "--storage", url, "--out", str(out)])
    run(*SEARCH, "--sparsity", "0.5", "--out", out)
    assert "sqlite://me:***@" in read(out).reproduce
    assert all(b"secret" not in path.read_bytes() for path in out.iterdir())
