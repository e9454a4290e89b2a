"""The documentation of every release beside that of the working tree, each with links to all.

    python docs/versions.py docs/_build/site

Releases are the tags ``v*``, newest first; each is built of its own files, by its own conf.py.
``index.html`` goes on to the newest release, or to ``dev`` where there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEV = "dev"
NAME, NAMES = "SECATEUR_DOCS_VERSION", "SECATEUR_DOCS_VERSIONS"
"""In the environment of a build: the version that is built, and all of them as a JSON list."""
PAGE = """<!doctype html>
<meta charset="utf-8">
<title>secateur</title>
<meta http-equiv="refresh" content="0; url={name}/index.html">
<a href="{name}/index.html">secateur {name}</a>
"""


def releases(root: Path) -> list[str]:
    """Return the tags of releases, newest first."""
    tags = _git(root, "tag", "--list", "v*").split()
    return sorted((t for t in tags if re.fullmatch(r"v\d+(\.\d+)*", t)), key=_numbers, reverse=True)


def _numbers(tag: str) -> list[int]:
    return [int(number) for number in tag[1:].split(".")]


def build(root: Path, out: Path) -> list[str]:
    """Build all versions, and return their names.

    Raises:
        CalledProcessError: one cannot be built; what sphinx said of it was shown.
    """
    tags = releases(root)
    names = [DEV, *(tag[1:] for tag in tags)]
    _sphinx(root, out / DEV, DEV, names)
    for tag in tags:
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder) / "tree"
            _git(root, "worktree", "add", "--detach", str(tree), tag)
            try:
                _sphinx(tree, out / tag[1:], tag[1:], names)
            finally:
                _git(root, "worktree", "remove", "--force", str(tree))
    (out / "index.html").write_text(PAGE.format(name=names[1] if tags else DEV), encoding="utf-8")
    return names


def _sphinx(root: Path, out: Path, name: str, names: list[str]) -> None:
    own = {NAME: name, NAMES: json.dumps(names)}
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(root / "docs"), str(out)]
    subprocess.run(command, cwd=root, env=os.environ | own, check=True)


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    print(*build(ROOT, parser.parse_args().out), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
