"""A plan of which any part is another is refused, or loads the model that was saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.errors import FileError
from secateur.shrinking import Plan
from secateur.shrinking.document import Table, signed
from tests import zoo
from tests.faults import edited, forge, variants


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(6, 8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mha, self.out = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mha(x, x, x, need_weights=False)[0])


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 8, bidirectional=True, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(12, 8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 12)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.linspace(1, 2, 16), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.down(self.up(self.norm(x)).relu() * self.scale))


class Experts(nn.Module):
    """Experts whose weights are one tensor each, and a fused projection; epsilon and sizes held."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width, self.inner, self.eps = 4, 4, 8, 1e-3
        self.embed, self.scale = nn.Linear(6, 16), nn.Parameter(torch.ones(16))
        self.qkv, self.o = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up = nn.Parameter(torch.randn(3, 16, 16) / 4)
        self.down = nn.Parameter(torch.randn(3, 8, 16) / 4)
        self.gate, self.out = nn.Linear(16, 3), nn.Linear(16, 2)

    def norm(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.scale

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        parts = self.qkv(self.norm(x)).view(*x.shape[:-1], 3, self.heads, self.width)
        q, k, v = (p.transpose(1, 2) for p in parts.unbind(2))
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.o(mixed.transpose(1, 2).reshape(*x.shape[:-1], self.heads * self.width))
        a, b = torch.einsum("btd,edf->betf", x, self.up).split([self.inner, self.inner], -1)
        each = torch.einsum("betf,efd->betd", a.relu() * b, self.down)
        return self.out((each * self.gate(x).softmax(-1).transpose(1, 2)[..., None]).sum(1))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8),
        nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(24, 2),
    )  # fmt: skip


def blocks() -> nn.Module:
    layers = (nn.TransformerEncoderLayer(16, 4, 24, dropout=0, batch_first=True) for _ in range(3))
    return nn.Sequential(*layers)


def llama() -> nn.Module:
    zoo.torchvision_models()
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)  # type: ignore[no-any-return]


TOKENS = torch.arange(12).reshape(2, 6)
Made = tuple[Callable[[], nn.Module], Any, dict[str, Any]]
KINDS: dict[str, Made] = {
    "convolutions": (convolutions, torch.linspace(-1, 1, 2 * 3 * 121).view(2, 3, 11, 11), {}),
    "recurrent": (Recurrent, torch.linspace(-1, 1, 60).view(2, 5, 6), {}),
    "experts": (Experts, torch.linspace(-1, 1, 60).view(2, 5, 6), {}),
    "attention": (
        lambda: nn.TransformerEncoderLayer(16, 4, 24, dropout=0, batch_first=True),
        torch.linspace(-1, 1, 160).view(2, 5, 16),
        {"coarse": True},
    ),
    "language model": (llama, {"input_ids": TOKENS}, {"uniform": True}),
    "attention alone": (Attentive, torch.linspace(-1, 1, 160).view(2, 5, 16), {"coarse": True}),
    "gated": (Gated, torch.linspace(-1, 1, 60).view(2, 5, 6), {}),
    "tied": (Tied, TOKENS, {}),
    "a block less": (blocks, torch.linspace(-1, 1, 160).view(2, 5, 16), {"drop": ["1"]}),
    "its heads": (llama, {"input_ids": TOKENS}, {"coarse": True}),
}


def outputs(model: nn.Module, x: Any) -> Tensor:
    with torch.no_grad():
        out = model.eval()(**x) if isinstance(x, dict) else model.eval()(x)
    return out if isinstance(out, Tensor) else out.logits  # type: ignore[no-any-return]


@cache
def saved(kind: str) -> tuple[dict[str, bytes], Tensor]:
    """Return the files of a pruned model of a kind, and its outputs."""
    from tempfile import TemporaryDirectory

    build, x, options = KINDS[kind]
    with torch.random.fork_rng(), TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = build().eval()
        if options.get("coarse"):
            structure = sc.analyze(model, x)
            groups = structure.independent(grid="coarse")
            keep = {g.name: tuple(range(max(g.step, g.size // 2))) for g in groups if g.exact}
            result = sc.apply_plan(model, Plan(keep), x)
        elif options.get("drop"):
            result = sc.drop_blocks(model, options["drop"], x)
        else:
            result = sc.prune(model, x, 0.5, **options)
        result.save(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return files, outputs(result.model, x)


def judged(folder: Path, kind: str, plan: Any) -> str:
    """Load a folder with another plan: "refused" or "whole"; else it fails.

    Args:
        plan: its text, or a document, whose digests are made anew, those in other files too.
    """
    files, wanted = saved(kind)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    if isinstance(plan, str):
        (folder / "plan.json").write_text(plan)
    else:
        forge(folder, plan)
    build, x, _ = KINDS[kind]
    model = build()
    before = {n: t.clone() for n, t in model.state_dict().items()}, repr(model)
    why = ""
    try:
        sc.load_pruned(folder, model)
    except FileError as error:
        why = str(error)
    if not why:
        assert torch.equal(outputs(model, x), wanted)
        return "whole"
    assert len(why) < 2000
    after = model.state_dict()
    assert (repr(model), after.keys()) == (before[1], before[0].keys())
    assert all(torch.equal(t, before[0][n]) for n, t in after.items())
    return "refused"


def document(kind: str) -> dict[str, Any]:
    return json.loads(saved(kind)[0]["plan.json"])  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_load_when_nothing_is_edited_then_it_is_whole(tmp_path: Path, kind: str) -> None:
    assert judged(tmp_path, kind, json.dumps(document(kind))) == "whole"
    made = [change for change in document(kind)["attributes"].values() if "of" in change]
    assert made or kind in ("tied", "a block less")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[*HealthCheck])
@given(seed=st.integers(0, 1 << 30))
def test_load_when_any_part_is_another_then_it_is_refused(
    tmp_path: Path, kind: str, seed: int
) -> None:
    found = edited(document(kind), Random(seed))
    same = json.dumps(found) == json.dumps(document(kind))
    assert judged(tmp_path, kind, json.dumps(found)) == ("whole" if same else "refused")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[*HealthCheck])
@example(seed=323194, edits=1)  # a number of a module that the model has not
@given(seed=st.integers(0, 1 << 30), edits=st.integers(1, 2))
def test_load_when_any_part_is_another_and_signed_then_it_is_refused_or_whole(
    tmp_path: Path, kind: str, seed: int, edits: int
) -> None:
    draw, found = Random(seed), document(kind)
    for _ in range(edits):
        changed = edited(found, draw, less=0)
        found = changed if isinstance(changed, dict) else found
    judged(tmp_path, kind, found)


@pytest.mark.parametrize("kind", KINDS)
def test_load_when_an_entry_is_left_out_and_all_digests_are_made_anew_then_it_is_refused(
    tmp_path: Path, kind: str
) -> None:
    tables = {
        name: list(document(kind)[name]) for name in get_args(Table) if name in document(kind)
    }
    entries = [(table, key) for table, keys in tables.items() for key in keys]
    for table, key in Random(0).sample(entries, min(12, len(entries))):
        found = document(kind)
        del found[table][key]
        assert judged(tmp_path, kind, found) == "refused", (table, key)


@pytest.mark.parametrize("kind", ["attention alone", "a block less"])
def test_load_when_an_entry_is_left_out_and_signed_then_the_other_files_tell(
    tmp_path: Path, kind: str
) -> None:
    every = [each for each in variants(document(kind)) if each[0][0] not in ("sha256", "files")]
    for where, found in Random(0).sample(every, 40):
        assert judged(tmp_path, kind, signed(found)) == "refused", where


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_load_when_any_node_is_left_out_doubled_or_altered_then_it_is_refused_or_whole(
    tmp_path: Path, kind: str
) -> None:
    for _, found in variants(document(kind)):
        judged(tmp_path, kind, found)


@pytest.mark.parametrize("kind", KINDS)
def test_load_when_one_number_is_another_and_signed_then_it_is_refused(
    tmp_path: Path, kind: str
) -> None:
    for name, change in document(kind)["attributes"].items():
        for other in (change["before"], change["after"] / 2, change["after"] * 2):
            value = other if isinstance(change["after"], float) else max(1, int(other))
            if value != change["after"]:
                found = document(kind)
                found["attributes"][name]["after"] = value
                assert judged(tmp_path, kind, found) == "refused", (name, value)


@pytest.mark.parametrize("group", ["nowhere", "0:7", "out.bias[1]", "", "a\nb"])
def test_load_when_a_group_is_of_no_tensor_then_it_is_refused(tmp_path: Path, group: str) -> None:
    found = document("convolutions")
    found["steps"][0]["keep"][group] = [[0, 0]]
    whole = judged(tmp_path, "convolutions", found) == "whole"
    assert whole == (group == "0:7")  # a name that a group may have, of which nothing was cut


def test_load_when_the_digest_is_not_asked_for_then_an_edited_plan_that_fits_loads(
    tmp_path: Path,
) -> None:
    found = {**document("recurrent"), "secateur": "another"}
    assert judged(tmp_path, "recurrent", json.dumps(found)) == "refused"
    fresh = sc.load_pruned(tmp_path, Recurrent(), verify_digests=False)
    assert torch.equal(outputs(fresh, KINDS["recurrent"][1]), saved("recurrent")[1])


def test_load_when_it_says_that_it_is_older_then_what_makes_a_number_still_counts(
    tmp_path: Path,
) -> None:
    found = document("recurrent")
    found["schema"] = 2
    assert judged(tmp_path, "recurrent", found) == "whole"
    found["attributes"]["rnn.hidden_size"]["after"] += 1
    assert judged(tmp_path, "recurrent", found) == "refused"


def test_load_when_the_file_is_older_then_it_loads_and_is_saved_as_older(tmp_path: Path) -> None:
    found = document("experts")
    for change in found["attributes"].values():
        change.pop("of")
    assert judged(tmp_path, "experts", found) == "refused"
    found["schema"] = 2
    assert judged(tmp_path, "experts", found) == "whole"
    sc.save_pruned(sc.load_pruned(tmp_path, Experts()), tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["schema"] == 2
    sc.load_pruned(tmp_path, Experts())
