"""What is released: the wheel and the sdist, their extras, and what `import secateur` brings in."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def run(*words: object, cwd: Path, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_extras_when_a_user_wants_a_part_then_it_has_a_name() -> None:
    assert {"cli", "report", "hf", "lightning", "onnx", "docs", "all", "dev"} <= EXTRAS.keys()


def test_extras_when_an_error_names_one_then_it_exists_and_holds_the_package() -> None:
    named = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MissingExtraError":
                package, extra = (getattr(word, "value", None) for word in node.args[1:])
                if isinstance(package, str) and isinstance(extra, str):
                    named.append((package.lower(), extra))
    assert len(named) >= 4
    for package, extra in named:
        assert package in " ".join(_packages(extra)).lower(), f"{extra} lacks {package}"


def _packages(extra: str) -> list[str]:
    """Return the requirements of an extra, those of the extras in it included."""
    found = []
    for requirement in EXTRAS[extra]:
        if requirement.startswith("secateur["):
            inner = requirement.removeprefix("secateur[").partition("]")[0].split(",")
            found += [package for name in inner for package in _packages(name)]
        else:
            found.append(requirement)
    return found


def test_import_when_only_secateur_is_used_then_no_extra_is_loaded(tmp_path: Path) -> None:
    heavy = ["cyclopts", "jinja2", "transformers", "lightning", "accelerate", "onnx", "sklearn"]
    code = f"import sys, secateur; print([m for m in {heavy} if m in sys.modules])"
    assert run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT / "src")) == "[]\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the sdist, and the wheel that was built from it."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.mark.slow
def test_sdist_when_built_then_holds_what_tests_and_documentation_need(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in (
        "src/secateur/report/page.css",
        "tests/zoo.py",
        "docs/conf.py",
        "examples/plain_loop.py",
        "LICENSE",
        "README.md",
    ):
        assert wanted in names
    assert not [name for name in names if "_build" in name or "__pycache__" in name]


@pytest.mark.slow
def test_wheel_when_installed_in_a_clean_environment_then_command_and_report_work(
    built: Path, tmp_path: Path
) -> None:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
    assert {
        "secateur/py.typed",
        "secateur/report/page.css",
        "secateur/report/page.html.j2",
    } <= names
    assert all(name.startswith(("secateur/", f"secateur-{version('secateur')}")) for name in names)

    environment = tmp_path / "env"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    # torch and the rest come from this interpreter's packages; secateur, only from the wheel.
    site = run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path)
    (Path(site.strip()) / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", path, cwd=tmp_path)
    where = run(python, "-c", "import secateur; print(secateur.__file__)", cwd=tmp_path)
    assert where.startswith(str(environment))
    command = environment / "bin" / "secateur"
    assert run(command, "--version", cwd=tmp_path).strip() == version("secateur")
    digits = ["secateur.demo.digits:DigitsNet", "--arg", "width=8", "--input", "1,1,8,8"]
    run(command, "prune", *digits, "--sparsity", "0.5", "--out", "small", cwd=tmp_path)
    assert (tmp_path / "small" / "report.html").is_file()
    assert "parameters" in run(command, "report", "small", "--markdown", cwd=tmp_path)


def test_citation_when_read_then_it_is_of_this_version_and_license() -> None:
    yaml = pytest.importorskip("yaml")
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= told.keys()  # what CFF 1.2 requires
    assert (told["cff-version"], told["type"]) == ("1.2.0", "software")
    assert (told["title"], told["version"]) == (PROJECT["name"], PROJECT["version"])
    assert (told["license"], told["abstract"]) == (PROJECT["license"], PROJECT["description"])
    assert [each["name"] for each in told["authors"]] == [a["name"] for a in PROJECT["authors"]]
