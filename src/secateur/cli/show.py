"""How a command prints what it found: for people, or as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from cyclopts import Parameter
from rich.console import Console

AsJson: TypeAlias = Annotated[
    bool, Parameter(name="--json", negative=(), help="print JSON instead of text")
]


def show(value: Any, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print facts as JSON for programs, or a value for people."""
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        Console().print(value)
