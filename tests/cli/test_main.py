"""The command line: what it prints and what it returns."""

from __future__ import annotations

import builtins
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from secateur import cli, demo, prune
from secateur.cli.models import recalled
from secateur.errors import ShrinkError
from secateur.report import report_of


def test_version_when_asked_then_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == cli.DONE
    assert capsys.readouterr().out.strip() == version("secateur")


def test_option_when_misspelt_then_usage_status_and_near_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["demo", "--sed", "3"]) == cli.USAGE
    printed = capsys.readouterr()
    assert "--seed" in printed.out + printed.err


@pytest.fixture
def record() -> demo.Record:
    """Return the record of a demo that kept its promises."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    report = report_of(prune(net, torch.zeros(1, 4), sparsity=0.5), net)
    return demo.Record(0, "2", 2, 600, 1.0, 1.0, 0.3, 0.5, 0, 1e-7, (), {}, report)


@pytest.mark.parametrize(("problems", "status"), [((), cli.DONE), (("too slow",), cli.FAILED)])
def test_demo_when_promises_are_broken_then_fails_and_report_is_written_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    record: demo.Record,
    problems: tuple[str, ...],
    status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def run(out: Path, seed: int) -> demo.Record:
        asked.append((out, seed))
        return replace(record, problems=problems)

    monkeypatch.setattr(demo, "run", run)
    assert cli.main(["demo", "--out", str(tmp_path), "--seed", "3"]) == status
    assert asked == [(tmp_path, 3)]
    assert recalled(tmp_path).model == "secateur.demo.digits:DigitsNet"
    assert f"report: {tmp_path / 'report.html'}" in capsys.readouterr().out
    assert (tmp_path / "report.html").is_file()


def test_error_when_expected_then_one_message_and_traceback_only_with_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(out: Path, seed: int) -> None:
        raise ShrinkError("it does not run")

    monkeypatch.setattr(demo, "run", run)
    assert cli.main(["demo"]) == cli.FAILED
    assert capsys.readouterr().err == "error: it does not run\n"
    with pytest.raises(ShrinkError):
        cli.main(["demo", "--debug"])


def test_command_when_cyclopts_is_missing_then_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without_cyclopts(name: str, *rest: object) -> object:
        if name == "cyclopts":
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_cyclopts)
    assert cli.main(["demo"]) == cli.FAILED
    assert 'pip install "secateur[cli]"' in capsys.readouterr().err
