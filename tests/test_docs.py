"""The documentation is true: its code runs, its commands exist, and every method has its page."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch

from secateur import criteria, methods, schedules
from secateur.cli import application
from tests import zoo

ROOT = Path(__file__).parent.parent
PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if not p.parent.name.startswith("_"))
PAGES.append(ROOT / "README.md")
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Return (line, code) for each fenced block of a language."""
    text = page.read_text(encoding="utf-8")
    return [
        (text[: match.start(3)].count("\n"), textwrap.dedent(match[3]))
        for match in FENCE.finditer(text)
        if match[2] == language
    ]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def with_code() -> list[object]:
    found = []
    for page in PAGES:
        if blocks(page, "python"):
            slow = "<!-- slow" in page.read_text(encoding="utf-8")
            marks = [pytest.mark.slow] if slow else []
            found.append(pytest.param(page, id=named(page), marks=marks))
    return found


@pytest.mark.parametrize("page", with_code())
def test_page_when_its_python_runs_from_top_to_bottom_then_nothing_fails(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # some blocks save what they made
    if "<!-- slow" in page.read_text(encoding="utf-8"):
        zoo.torchvision_models()  # transformers imports torchvision, which may need help
    module = ModuleType(f"docs_{page.stem}")  # classes of a page are found by their module's name
    monkeypatch.setitem(sys.modules, module.__name__, module)
    registered = [(r, dict(r._functions)) for r in (criteria, methods, schedules)]
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
            torch.manual_seed(0)
            for line, code in blocks(page, "python"):
                source = "\n" * line + code  # a traceback then names the line of the page
                exec(compile(source, str(page), "exec"), module.__dict__)
    finally:
        for registry, functions in registered:
            registry._functions = functions


def commands() -> list[object]:
    return [
        pytest.param(line.removeprefix("$ "), id=f"{named(page)}: {line}")
        for page in PAGES
        for _, code in blocks(page, "console")
        for line in code.splitlines()
        if line.startswith("$ secateur")
    ]


@pytest.mark.parametrize("line", commands())
def test_command_when_a_page_shows_it_then_it_parses(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    application().parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("name", [*criteria, *methods])
def test_method_when_registered_then_has_a_page_that_draws_on_its_docstring(name: str) -> None:
    page = ROOT / "docs" / "methods" / f"{name}.md"
    assert page.is_file(), f"write {named(page)}"
    assert f"secateur.criteria.{name}" in page.read_text() or name in methods
    assert name in (ROOT / "docs" / "methods" / "index.md").read_text()


def test_schedule_when_registered_then_is_on_their_page() -> None:
    page = (ROOT / "docs" / "methods" / "schedules.md").read_text()
    assert all(name in page for name in schedules)
