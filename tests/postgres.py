"""A PostgreSQL server of its own, on a socket in a temporary folder."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # Debian's


@contextmanager
def postgres() -> Iterator[str]:
    """Start a server, yield the URL of its database, and stop it; skip where there is none."""
    pytest.importorskip("psycopg", reason="no psycopg to speak to PostgreSQL with")
    places = os.pathsep.join([*map(str, PLACES), os.environ.get("PATH", "")])
    initdb, control = (shutil.which(name, path=places) for name in ("initdb", "pg_ctl"))
    if initdb is None or control is None:
        pytest.skip(
            "no PostgreSQL: neither initdb nor pg_ctl is on the PATH or where Debian has it"
        )
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # sockets want short names
    user = getpass.getuser()
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        user = "nobody"
        shutil.chown(folder, user)
        as_user = {"user": user, "cwd": folder, "extra_groups": []}
    data = folder / "data"

    def run(*words: object) -> None:
        done = subprocess.run([*map(str, words)], capture_output=True, text=True, **as_user)
        assert done.returncode == 0, f"{words[0]}: {done.stdout}{done.stderr}"

    try:
        run(initdb, "-D", data, "-U", "search", "-A", "trust", "-N", "--locale=C", "-E", "UTF8")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        run(control, "-D", data, "-w", "-o", options, "-l", folder / "log", "start")
        try:
            yield f"postgresql+psycopg://search@/postgres?host={folder}"
        finally:
            run(control, "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
