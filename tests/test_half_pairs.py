"""Half of a pair of UTF-16, which JSON, YAML and file names may say, is an error or just works."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import FileError, SecateurError, WriteError
from secateur.nni.pruning import L1NormPruner
from secateur.report import Report, report_of, to_markdown

HALF = "a\udc80b"
X = torch.ones(2, 8)


class Named(nn.Module):
    """A layer of a name that no encoding can say."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(HALF, nn.Linear(8, 16))
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(getattr(self, HALF)(x).relu())  # type: ignore[no-any-return]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def nni(**entry: Any) -> Any:
    return L1NormPruner(net(), [{"op_types": ["Linear"], "sparse_ratio": 0.5, **entry}]).compress()


GIVEN: dict[str, Callable[[], object]] = {
    "criterion": lambda: sc.Config(criterion=HALF),
    "key": lambda: sc.Config.from_dict({HALF: 1}),
    "types": lambda: sc.prune(net(), X, 0.5, types=[HALF]),
    "allocation": lambda: sc.prune(net(), X, allocation={HALF: 0.5}),
    "repair": lambda: sc.prune(net(), X, 0.5, data=[X], repair=HALF),
    "batch": lambda: sc.prune(net(), X, 0.5, data=[{HALF: X}]),
    "plan": lambda: sc.apply_plan(net(), sc.Plan({HALF: (0,)}), X),
    "masks": lambda: sc.shrink(net(), {HALF: torch.ones(2)}, X),
    "block": lambda: sc.drop_blocks(net(), [HALF], X),
    "NNI's names": lambda: nni(op_names=[HALF], op_types=None),
    "NNI's types": lambda: nni(op_types=[HALF]),
    "NNI's expression": lambda: nni(op_names_re=[HALF + "("]),
    "NNI's targets": lambda: nni(target_names=[HALF]),
    "NNI's granularity": lambda: nni(granularity=HALF),
    "NNI's key": lambda: nni(**{HALF: 1}),
}


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(SecateurError) as caught:
        act()
    text = str(caught.value)
    assert len(text.encode("utf-8")) < 2000  # it can be printed
    return text


@pytest.mark.parametrize("what", GIVEN)
def test_call_when_a_name_is_half_a_pair_then_a_short_error_that_can_be_printed(what: str) -> None:
    refused(GIVEN[what])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"criterion": "\\ud800"}'),
        ("b.json", '{"\\ud800": "l1"}'),
        ("c.yaml", 'criterion: "\\uD800"'),
        ("d.yaml", "criterion: \udc80"),
        ("e.toml", 'criterion = "\\ud800"'),
        (f"{HALF}.yaml", None),
    ],
)
def test_config_when_a_file_says_half_a_pair_then_a_short_error(
    tmp_path: Path, name: str, text: str | None
) -> None:
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    refused(lambda: sc.Config.load(tmp_path / name))


@pytest.mark.parametrize("name", [HALF, "a\ud800b"])  # bytes that are no text; no bytes at all
def test_save_when_the_path_is_half_a_pair_then_write_error_and_nothing_is_left(
    tmp_path: Path, name: str
) -> None:
    result = sc.prune(net(), X, 0.5)
    with pytest.raises(WriteError, match=r"\\ud"):
        result.save(tmp_path / name)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    with pytest.raises(FileError, match=r"\\ud"):
        sc.load_pruned(tmp_path / name, net())


def test_prune_when_a_module_is_named_so_then_it_is_pruned_and_told_but_not_saved(
    tmp_path: Path,
) -> None:
    model = Named()
    structure = sc.analyze(model, X)
    assert [group.name for group in structure.groups] == [HALF]
    result = sc.prune(model, X, 0.5)
    assert r"a\udc80b" in str(structure).encode().decode()
    assert str(result).encode()
    text = report_of(result, model).to_text()
    assert json.loads(text)["structure"]["groups"][0]["name"] == r"a\udc80b"
    assert to_markdown(Report.from_text(text, "it")).encode()
    assert r"a\udc80b" in refused(lambda: result.save(tmp_path / "small"))
    pruner = sc.Pruner(Named(), {"sparsity": 0.5}, X)
    pruner.step()
    assert r"a\udc80b" in refused(lambda: pruner.save(tmp_path / "run"))
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
