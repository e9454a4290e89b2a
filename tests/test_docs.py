"""The documentation is true: its code runs, its commands exist, and every method has its page."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import secateur
from secateur import cli, criteria, methods, schedules
from secateur.cli import application
from secateur.costs import COSTS
from tests import zoo

ROOT = Path(__file__).parent.parent
REGISTRIES = (
    *(criteria, methods, schedules, secateur.repairs, secateur.kinds, secateur.allocators),
    secateur.block_rankings,
)
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
    registered = [(r, dict(r._functions)) for r in REGISTRIES]
    costs = dict(COSTS)
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
            torch.manual_seed(0)
            for line, code in blocks(page, "python"):
                source = "\n" * line + code  # a traceback then names the line of the page
                exec(compile(source, str(page), "exec"), module.__dict__)
    finally:
        for registry, functions in registered:
            registry._functions = functions
        COSTS.clear()
        COSTS.update(costs)


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


RUN = [page for page in PAGES if "<!-- commands run" in page.read_text(encoding="utf-8")]


@pytest.fixture
def my_llama(shared_data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a small trained Llama, its tokenizer, and two texts of its domain."""
    zoo.torchvision_models()  # transformers imports torchvision, which may need help
    transformers = pytest.importorskip("transformers")
    source = zoo.shared_data_folder() / "docs_lm"
    if not (source / "llama").is_dir():
        pytest.skip(f"no language model at {source}")
    shutil.copytree(source / "llama", tmp_path / "my-llama", copy_function=shutil.copyfile)
    (tmp_path / "my-llama").chmod(0o755)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(source / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(tmp_path / "my-llama")
    tokens = np.load(source / "tokens.npz")
    for name, ids in (("text", tokens["train"][: 8 * 512]), ("test", tokens["test"][:1500])):
        (tmp_path / f"{name}.txt").write_text(tokenizer.decode(ids.tolist()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow  # prunes a trained language model four times
@pytest.mark.filterwarnings("ignore")  # of libraries, about themselves
@pytest.mark.parametrize("page", RUN, ids=named)
def test_page_when_its_commands_run_in_their_order_then_each_does_what_it_says(
    page: Path, my_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for _, code in blocks(page, "console") for line in code.splitlines()]
    with torch.random.fork_rng(devices=[]):
        for line in (line for line in lines if line.startswith("$ secateur")):
            status = cli.main(shlex.split(line, comments=True)[2:])
            assert status == cli.DONE, f"{line}: {capsys.readouterr().err}"
    module: dict[str, Any] = {}
    for _, code in blocks(page, "python"):
        exec(code, module)
    assert module["serve"](my_llama / "small").shape[1] > 8
    kept = json.loads((my_llama / "small" / "config.json").read_text())["intermediate_size"]
    assert kept % 256 == 0
    loaded = secateur.from_pretrained(my_llama / "ragged")
    assert not (my_llama / "ragged" / "config.json").exists()
    assert len({m.out_features for n, m in loaded.named_modules() if n.endswith("up_proj")}) > 1


def test_pages_when_their_commands_run_then_there_are_some() -> None:
    assert RUN


@pytest.mark.parametrize("name", [*criteria, *methods])
def test_method_when_registered_then_has_a_page_that_draws_on_its_docstring(name: str) -> None:
    page = ROOT / "docs" / "methods" / f"{name}.md"
    assert page.is_file(), f"write {named(page)}"
    if name in criteria:
        assert f"{criteria[name].__module__}.{name}" in page.read_text()


def test_public_name_when_no_page_documents_it_then_is_named() -> None:
    directive = re.compile(
        r"^\.\. auto(?:function|class|module|data):: secateur\.(\w+)$", re.MULTILINE
    )
    documented = {name for page in PAGES for name in directive.findall(page.read_text())}
    assert not set(secateur.__all__) - documented, "add it to docs/reference.md"


@pytest.mark.parametrize(
    "name", [n for n in secateur.__all__ if n not in ("errors", "criteria", "schedules", "methods")]
)
def test_public_name_when_it_is_a_function_or_class_then_has_an_example_that_runs(
    name: str,
) -> None:
    assert ">>>" in (getattr(secateur, name).__doc__ or ""), f"give {name} an example"


@pytest.mark.parametrize(
    ("page", "below"),
    [("docs/life.md", "src/secateur"), ("CONTRIBUTING.md", "."), ("README.md", ".")],
)
def test_page_when_it_names_a_file_or_folder_of_ours_then_it_is_there(
    page: str, below: str
) -> None:
    words = re.findall(r"`([\w/.]+(?:\.py|/))`", (ROOT / page).read_text())
    places = [word for word in words if "/" in word.strip("/") or page == "docs/life.md"]
    assert not [place for place in places if not (ROOT / below / place).exists()]
    assert len(places) > 40 or page != "docs/life.md"


@pytest.fixture
def notebooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module that makes notebooks of pages."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("notebooks")


RECIPES = [page for page in PAGES if page.parent.name == "recipes" and blocks(page, "python")]


@pytest.mark.parametrize("page", RECIPES, ids=named)
def test_notebook_of_a_recipe_then_its_code_is_that_of_the_page_after_an_install(
    page: Path, notebooks: ModuleType
) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    made = notebooks.notebook(page.read_text(encoding="utf-8"))
    nbformat.validate(nbformat.from_dict(made))
    install, *code = [c["source"] for c in made["cells"] if c["cell_type"] == "code"]
    assert install.startswith("%pip install")
    assert code == [code.strip("\n") for _, code in blocks(page, "python")]
    prose = "\n".join(c["source"] for c in made["cells"] if c["cell_type"] == "markdown")
    assert prose.startswith("# ")
    assert not re.search(r"```\{|<!--|```python|\.md\)", prose)
    words = re.sub(r"\s", "", notebooks.UNSHOWN.sub("", page.read_text(encoding="utf-8")))
    left = re.sub(r"\s", "", "".join(c["source"] for c in made["cells"][2:]))
    assert len(left) > 0.8 * len(words)  # what is missing are fences, links' targets and the title


@pytest.mark.parametrize("recipe", ["criterion", "layer"])
def test_notebook_of_a_recipe_when_its_cells_run_then_nothing_fails(
    recipe: str, notebooks: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    notebooks.write_all(ROOT / "docs" / "recipes", tmp_path)
    assert {path.stem for path in tmp_path.glob("*.ipynb")} == {page.stem for page in RECIPES}
    cells = json.loads((tmp_path / f"{recipe}.ipynb").read_text())["cells"]
    module = ModuleType(f"notebook_{recipe}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    known = dict(criteria._functions)
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
            for cell in cells:
                if cell["cell_type"] == "code" and not cell["source"].startswith("%pip"):
                    exec(compile(cell["source"], cell["id"], "exec"), module.__dict__)
    finally:
        criteria._functions = known
    assert "sc" in vars(module)


def test_page_of_a_recipe_when_it_is_built_then_it_offers_its_notebook_below_its_heading(
    notebooks: ModuleType,
) -> None:
    made = notebooks.offered("<!-- slow -->\n# A title\n\nText\n# no title\n", "/a.ipynb")
    first, second = made.split("\n\n")[:2]
    assert (first, "</a.ipynb>" in second) == ("<!-- slow -->\n# A title", True)
    assert made.count("</a.ipynb>") == 1


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Return the module that draws the figures, reading results from an empty folder."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    module = importlib.import_module("figures")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_methods_figure_when_old_rows_and_one_seed_then_longest_runs_and_no_spread(
    figures: ModuleType, tmp_path: Path
) -> None:
    rows = [
        {"model": "resnet56", "method": method, "steps": steps, "accuracy": accuracy}
        for method, steps, accuracy in [
            ("l2", 40, 11.0),
            ("slim", 40, 12.0),
            ("l2", 500, 88.0),
            ("l2", 500, 90.0),
            ("tp slim", 500, 87.0),
        ]
    ]
    (tmp_path / "methods.json").write_text(json.dumps({"data": rows}))
    drawn = figures.methods_figure("slim")
    assert re.findall(r">([^<>]*)</text>\n", drawn)[-2:] == ["89.0 ± 1.4", "87.0"]
    assert re.findall('"600">([^<]*)<', drawn) == ["Torch-Pruning: slim", "87.0"]
    assert "ResNet-56, cut to at most half of its MACs and trained for 500 steps" in drawn
    assert "1 to 2 seeds" in drawn


@pytest.mark.parametrize("methods", [["movement"], ["magnitude", "movement", "dense"]])
def test_movement_figure_when_methods_are_missing_then_it_draws_the_others(
    figures: ModuleType, tmp_path: Path, methods: list[str]
) -> None:
    rows = [
        {"method": method, "kept": kept, "steps": 9, "batch": 4, "layers": 2, "accuracy": 80.0}
        for method in methods
        for kept in ([1.0] if method == "dense" else [0.7, 0.05])
    ]
    (tmp_path / "movement.json").write_text(json.dumps({"data": rows}))
    drawn = figures.movement_figure()
    assert [
        name in drawn.partition("figcaption")[0] for name in (">magnitude<", ">dense 80.0<")
    ] == [len(methods) > 1] * 2
    assert "first 2 layers" in drawn
    assert "9 steps of fine-tuning; one seed" in drawn


@pytest.mark.slow  # builds the documentation twice
def test_site_when_there_is_a_release_then_each_version_links_to_all(tmp_path: Path) -> None:
    def git(*words: str, at: Path) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=at, check=True
        )

    if not (ROOT / ".git").exists():
        pytest.skip("this is no git repository: nothing says what was released")
    tree, out = tmp_path / "tree", tmp_path / "site"
    git("clone", "--quiet", str(ROOT), str(tree), at=tmp_path)
    shutil.copytree(
        ROOT / "docs", tree / "docs", dirs_exist_ok=True, ignore=shutil.ignore_patterns("_*")
    )
    git("add", "--all", at=tree)
    git("commit", "--quiet", "--allow-empty", "--message", "release", at=tree)
    for tag in ("v0.9.0", "not-a-release"):
        git("tag", tag, at=tree)
    subprocess.run([sys.executable, "docs/versions.py", str(out)], cwd=tree, check=True)
    assert sorted(path.name for path in out.iterdir()) == ["0.9.0", "dev", "index.html"]
    assert "url=0.9.0/index.html" in (out / "index.html").read_text()
    for name, other in (("dev", "0.9.0"), ("0.9.0", "dev")):
        assert (
            f'href="../../{other}/index.html"' in (out / name / "recipes" / "cnn.html").read_text()
        )
    worktrees = subprocess.run(
        ["git", "worktree", "list"], cwd=tree, capture_output=True, text=True
    )
    assert len(worktrees.stdout.splitlines()) == 1
