"""What the commands that prune have in common: their settings, and a folder with the outcome."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from rich.console import Group as Lines
from torch import nn

from secateur.config import Config
from secateur.errors import ConfigError, MissingExtraError
from secateur.runtime.measure import latency
from secateur.searching import Search
from secateur.searching.options import without_password
from secateur.settings import pattern_share
from secateur.shrinking import Result
from secateur.types import Example

from .models import keywords, shares


def check_place(out: Path | None, dry_run: bool = False) -> None:
    """Refuse a folder that could not be written when all work is done."""
    if dry_run:
        return
    if out is None:
        raise ConfigError("say where the smaller model goes: --out DIR (or --dry-run)")
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"--out {out}: {there} is a file, and no folder")
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror or error}, in {there}") from error


def config_of(file: Path | None, options: dict[str, Any]) -> Config:
    """Return the settings of a file with the options over them."""
    given = {name: _value(name, value) for name, value in options.items() if value is not None}
    if file is None:
        exact = pattern_share(given.get("granularity")) is not None
        if not exact and not given.keys() & {"sparsity", "threshold", "allocation", "budget"}:
            raise ConfigError("say how much to remove: --sparsity 0.5, --threshold or --config")
        return Config.from_dict(given)
    return Config.load(file).replace(**given) if given else Config.load(file)


def _value(name: str, value: Any) -> Any:
    """Return what words of an option mean: pairs with "=", or tile sizes as 1,-1,-1,-1."""
    if name == "method_options":
        return keywords(value)
    if name == "allocation":
        return shares(value)
    words = value.split(",") if name == "granularity" else ()
    sizes = all(word.lstrip("-").isdigit() for word in words)
    return [int(word) for word in words] if words and sizes else value


def reported(
    result: Result,
    dense: nn.Module,
    example: Example,
    out: Path,
    history: list[dict[str, float]],
    config: Config,
    search: Search | None = None,
    *,
    timed: bool = True,
) -> tuple[Lines, dict[str, Any]]:
    """Write the report; return what a person is shown, and the facts.

    Args:
        timed: both models have weights here, and their forwards are timed.
    """
    from secateur.report import report_of, write

    report = report_of(
        result,
        dense,
        latency=latency({"before": dense, "after": result.model}, example) if timed else None,
        history=history,
        search=search,
        config=config.model_dump(mode="json", exclude_unset=True),
        reproduce=shlex.join(["secateur", *map(without_password, sys.argv[1:])]),
    )
    try:
        page = str(write(out, report))
    except MissingExtraError as error:  # the model is saved, and report.json too
        page = str(error)
    lines = Lines(result, f"saved in {out}; report: {page}")
    return lines, report.model_dump(mode="json", by_alias=True)
