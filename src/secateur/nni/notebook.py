"""A notebook as one script, and back: the code of its cells, whose names they share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from secateur.errors import FileError

CELL = "# cell {} of the notebook"
MAGIC = re.compile(r"^(\s*)([%!?].*)$", re.MULTILINE)
HIDDEN = re.compile(r"^(\s*)pass  # magic: (.*)$", re.MULTILINE)


def script_of(raw: str, name: str) -> tuple[str, Callable[[str], str]]:
    """Return the code of a notebook, and a function from that code, rewritten, to the notebook.

    Lines of IPython's own (``%pip install``) are comments meanwhile; a cell in another language
    (``%%bash``) is left out.

    >>> cells = [{"cell_type": "code", "source": ["import nni\\n", "%time x = 1"]}]
    >>> script, back = script_of(json.dumps({"cells": cells}), "n.ipynb")
    >>> print(script)
    # cell 0 of the notebook
    import nni
    pass  # magic: %time x = 1
    >>> json.loads(back(script.replace("nni", "mine")))["cells"][0]["source"]
    ['import mine\\n', '%time x = 1']

    Raises:
        FileError: it is no notebook.
    """
    try:
        notebook: Any = json.loads(raw)
        cells = [(i, _text(cell)) for i, cell in enumerate(notebook["cells"]) if _is_code(cell)]
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"{name} is no notebook that can be read: {error}") from error
    shown = [(i, MAGIC.sub(r"\1pass  # magic: \2", text)) for i, text in cells]
    script = "\n".join(f"{CELL.format(i)}\n{text}" for i, text in shown)

    def back(text: str) -> str:
        ends = [text.index(CELL.format(i)) for i, _ in cells] + [len(text)]
        for (i, _), (start, end) in zip(cells, pairwise(ends), strict=True):
            code = text[start:end].partition("\n")[2]
            code = HIDDEN.sub(r"\1\2", code if end == len(text) else code.removesuffix("\n"))
            source = notebook["cells"][i]["source"]
            whole = isinstance(source, str)
            notebook["cells"][i]["source"] = code if whole else code.splitlines(keepends=True)
        return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"

    return script, back


def _is_code(cell: Any) -> bool:
    return cell["cell_type"] == "code" and not _text(cell).lstrip().startswith("%%")


def _text(cell: Any) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)
