"""Every command on a small network, from prune to a file that onnxruntime runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from secateur import cli, criteria, methods, schedules
from secateur.graph.kinds import kinds
from secateur.repair import repairs
from secateur.scoring.allocations import allocators
from secateur.scoring.criteria import needs
from secateur.scoring.granularity import FORMS
from secateur.searching.samplers import samplers

NETWORKS = Path(__file__).parent / "networks.py"
CONV = [f"{NETWORKS}:conv", "--input", "2,3,12,12"]

Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command, expects success, and returns its --json."""

    def command(*words: object, code: int = cli.DONE) -> Any:
        status = cli.main([str(word) for word in words])
        printed = capsys.readouterr()
        assert status == code, printed.err
        return json.loads(printed.out) if "--json" in words else printed.out + printed.err

    return command


@pytest.fixture
def small(run: Run, tmp_path: Path) -> Path:
    """Return a folder with half of the network."""
    run("prune", *CONV, "--sparsity", "0.5", "--out", tmp_path / "small")
    return tmp_path / "small"


def test_inspect_when_asked_for_json_then_groups_costs_and_reasons(run: Run) -> None:
    facts = run("inspect", *CONV, "--json")
    assert [(g["name"], g["size"], g["exact"]) for g in facts["groups"]] == [
        ("0", 8, True),
        ("3", 16, True),
    ]
    assert facts["params"] == 1493
    assert {"7": "it is the model's output"}.items() <= {
        f["name"]: f["reason"] for f in facts["frozen"]
    }.items()


def test_inspect_when_text_then_names_what_is_frozen(run: Run) -> None:
    assert "it is the model's output" in run("inspect", *CONV)


def test_prune_when_done_then_folder_stands_for_itself(run: Run, small: Path) -> None:
    assert {p.name for p in small.iterdir()} == {
        "model.safetensors",
        "plan.json",
        "record.json",
        "report.json",
        "report.html",
    }
    facts = run("inspect", small, "--trust", "--json")
    assert [g["size"] for g in facts["groups"]] == [4, 8]


def test_prune_when_run_on_what_it_wrote_then_cuts_further(
    run: Run, small: Path, tmp_path: Path
) -> None:
    run("prune", small, "--trust", "--sparsity", "0.5", "--out", tmp_path / "smaller")
    facts = run("inspect", tmp_path / "smaller", "--trust", "--json")
    assert [g["size"] for g in facts["groups"]] == [2, 4]


def test_prune_when_shares_are_named_then_each_has_its_own(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "small"
    run("prune", *CONV, "--allocation", "0=0.25", "[23]=0.5", "--out", out)
    facts = run("inspect", out, "--trust", "--json")
    assert [g["size"] for g in facts["groups"]] == [6, 8]
    said = run("prune", *CONV, "--allocation", "0.25", "--dry-run", code=cli.FAILED)
    assert "write name=share" in said


def test_prune_when_amounts_are_given_then_all_are_met_and_told(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "small"
    amounts = ["--budget", "0.7 k params", "100 k MACs", "--allocate", "depth"]
    facts = run("prune", *CONV, *amounts, "--out", out, "--json")
    assert facts["after"]["params"] <= 700
    assert facts["after"]["macs"] <= 100_000
    assert [(goal["of"], goal["met"]) for goal in facts["goals"]] == [
        ("params", True),
        ("macs", True),
    ]
    said = run("prune", *CONV, "--budget", "12 MS", "--dry-run", code=cli.FAILED)
    assert "Did you mean 'ms'" in said


def test_prune_when_dry_run_then_plan_is_shown_and_nothing_written(
    run: Run, tmp_path: Path
) -> None:
    facts = run("prune", *CONV, "--sparsity", "0.25", "--dry-run", "--json")
    kept = {g["name"]: g["kept"] for g in facts["structure"]["groups"]}
    assert {name: sum(b - a + 1 for a, b in ranges) for name, ranges in kept.items()} == {
        "0": 6,
        "3": 12,
    }
    assert facts["after"]["params"] < facts["structure"]["params"]
    assert "nothing was written" in run("prune", *CONV, "--sparsity", "0.25", "--dry-run")
    assert list(tmp_path.iterdir()) == []


def test_prune_when_settings_come_from_a_file_then_options_go_over_them(
    run: Run, tmp_path: Path
) -> None:
    settings = tmp_path / "prune.yaml"
    settings.write_text("sparsity: 0.5\ntargets:\n  - names: ['0']\n")
    facts = run("prune", *CONV, "--config", settings, "--dry-run", "--json")
    assert [g["kept"] is not None for g in facts["structure"]["groups"]] == [True, False]
    facts = run("prune", *CONV, "--config", settings, "--sparsity", "0.25", "--dry-run", "--json")
    assert sum(b - a + 1 for a, b in facts["structure"]["groups"][0]["kept"]) == 6


def test_prune_when_masks_cut_nothing_then_they_are_saved_and_reported(
    run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "sparse"
    facts = run(
        "prune", *CONV, "--granularity", "element", "--sparsity", "0.5", "--out", out, "--json"
    )
    assert facts["before"]["params"] == facts["after"]["params"]
    masked = {t["name"]: t["masked"] for t in facts["tensors"]}
    assert masked["7.weight"] == 0.5
    assert "Masked, not cut" in (out / "report.html").read_text()


def test_prune_when_criterion_needs_gradients_then_data_gives_them(
    run: Run, tmp_path: Path
) -> None:
    words = ["--criterion", "taylor", "--sparsity", "0.5", "--out", tmp_path / "small"]
    facts = run("prune", *CONV, *words, "--data", f"{NETWORKS}:batches", "--json")
    assert facts["after"]["params"] < facts["before"]["params"]
    loss = ["--loss", f"{NETWORKS}:squares"]
    run("prune", *CONV, *words, "--data", f"{NETWORKS}:features", *loss)
    assert "--loss module:function" in run(
        "prune", *CONV, *words, "--data", f"{NETWORKS}:features", code=cli.FAILED
    )
    assert "gradients" in run("prune", *CONV, *words, code=cli.FAILED)


def test_prune_when_schedule_then_training_steps_it_and_report_has_the_history(
    run: Run, tmp_path: Path
) -> None:
    words = ["--sparsity", "0.5", "--schedule", "linear", "--steps", "3", "--every", "2"]
    out = ["--out", tmp_path / "small"]
    facts = run("prune", *CONV, *words, *out, "--train", f"{NETWORKS}:train", "--json")
    history = facts["history"]
    assert [(row["step"], row["sparsity"] > 0) for row in history if "sparsity" in row] == [
        (2, True),
        (4, True),
        (6, True),
    ]
    assert [row["step"] for row in history if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert facts["structure"]["groups"][0]["kept"] is not None
    assert "--train module:function" in run("prune", *CONV, *words, *out, code=cli.FAILED)
    short = ["--train", f"{NETWORKS}:too_short"]
    assert "made 0 of 3" in run("prune", *CONV, *words, *out, *short, code=cli.FAILED)


def test_prune_when_method_has_options_then_they_reach_it(run: Run, tmp_path: Path) -> None:
    words = ["--sparsity", "0.5", "--method", "slim", "--out", tmp_path / "x", "--names", "0"]
    printed = run("prune", *CONV, *words, "--method-options", "strenght=1", code=cli.FAILED)
    assert "Did you mean 'strength'?" in printed
    options = ["--method-options", "strength=0.001", "--train", f"{NETWORKS}:train"]
    facts = run("prune", *CONV, *words, *options, "--json")
    assert facts["config"]["method_options"] == {"strength": 0.001}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sparsity", "50", "--out", "x"], "Did you mean 0.5?"),
        (["--criterion", "fpmg", "--sparsity", "0.5", "--out", "x"], "Did you mean 'fpgm'?"),
        (["--out", "x"], "say how much to remove"),
        (["--sparsity", "0.5"], "--out DIR"),
        (["--sparsity", "0.5", "--out", "x", "--exclude", "*"], ""),
    ],
)
def test_prune_when_a_setting_is_wrong_then_one_line_and_no_traceback(
    run: Run, words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = run("prune", *CONV, *words, code=cli.FAILED)
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert said in printed
    assert list(tmp_path.iterdir()) == []


def test_prune_when_model_raises_then_one_line_that_names_the_error(run: Run) -> None:
    printed = run("prune", f"{NETWORKS}:broken", "--sparsity", "0.5", "--dry-run", code=cli.FAILED)
    assert printed == "error: RuntimeError: two lines (--debug shows where)\n"


@pytest.mark.parametrize(
    ("words", "near"),
    [(["prune", "--sparsty", "0.5"], "--sparsity"), (["pruen"], "prune"), (["inspect"], "MODEL")],
)
def test_usage_when_wrong_then_status_2_and_one_line(run: Run, words: list[str], near: str) -> None:
    printed = run(*words, code=cli.USAGE)
    assert near in printed
    assert printed.count("\n") == 1


def test_compare_when_dense_and_pruned_then_sizes_times_and_outputs(run: Run, small: Path) -> None:
    facts = run("compare", *CONV, small, "--runs", "3", "--json")
    dense, pruned = facts["dense"], facts["pruned"]
    assert pruned["cost"]["params"] < dense["cost"]["params"]
    assert 0 < pruned["latency"]["low"] <= pruned["latency"]["median"]
    saved = load_file(small / "model.safetensors").values()  # without its header, as the code's
    assert pruned["bytes"] == sum(tensor.numel() * tensor.itemsize for tensor in saved)
    assert dense["bytes"] - 4 * dense["cost"]["params"] < 100  # buffers
    assert 0 < facts["output_difference"] < 10
    assert "as fast" in run("compare", *CONV, small, "--runs", "2")


def test_compare_when_a_model_meets_itself_then_outputs_are_equal(run: Run) -> None:
    facts = run("compare", CONV[0], CONV[0], *CONV[1:], "--runs", "2", "--json")
    assert facts["output_difference"] == 0


def test_export_when_both_formats_then_runtimes_agree_with_the_model(run: Run, small: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    written = run("export", small, "--trust", "--onnx", "--torch-export", "--json")
    assert (small / "model.pt2").is_file()
    assert (small / "model.onnx").is_file()
    assert written["onnx"]["difference"] < 1e-5
    assert written["torch_export"]["difference"] < 1e-6


def test_export_when_batch_is_dynamic_then_another_batch_runs(run: Run, small: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    words = ["--onnx", "--torch-export", "--dynamic-batch"]
    written = run("export", small, "--trust", *words, "--json")
    assert written["onnx"]["difference"] < 1e-5
    session = onnxruntime.InferenceSession(small / "model.onnx")
    (shape,) = [each.shape for each in session.get_inputs()]
    assert isinstance(shape[0], str)
    assert shape[1:] == [3, 12, 12]
    program = torch.export.load(small / "model.pt2").module()
    assert program(torch.zeros(7, 3, 12, 12)).shape == (7, 5)


def test_export_when_no_format_then_says_which_there_are(run: Run, small: Path) -> None:
    assert "--onnx, --torch-export" in run("export", small, code=cli.FAILED)


def test_list_when_pattern_then_matching_names_and_near_ones_if_none(run: Run) -> None:
    names = [row["name"] for row in run("list", "l*", "--json")["names"]]
    assert {"l1", "l2", "linear"} <= set(names)
    assert all(name.startswith("l") for name in names)
    assert "Did you mean 'cubic'?" in run("list", "cubik", code=cli.FAILED)
    assert "Did you mean 'element'?" in run("list", "elements", code=cli.FAILED)


@pytest.mark.slow
def test_prune_when_all_kinds_are_asked_for_then_they_share_the_goal(
    run: Run, tmp_path: Path
) -> None:
    words = [f"{NETWORKS}:encoder", "--input", "2,3,8", "--what", "all", "--sparsity", "0.5"]
    words += ["--data", f"{NETWORKS}:sequences", "--allocate", "uniform", "--repair", "none"]
    planned = run("prune", *words, "--dry-run", "--json")
    run("prune", *words, "--out", tmp_path / "small")
    facts = run("compare", f"{NETWORKS}:encoder", tmp_path / "small", "--input", "2,3,8", "--json")
    assert facts["pruned"]["cost"]["params"] == planned["after"]["params"]
    assert facts["pruned"]["cost"]["params"] * 2 <= facts["dense"]["cost"]["params"]


def test_prune_when_depth_is_asked_for_then_layers_go_and_the_folder_loads(
    run: Run, tmp_path: Path
) -> None:
    words = [f"{NETWORKS}:encoder", "--input", "2,3,8", "--what", "depth", "--sparsity", "0.5"]
    words += ["--data", f"{NETWORKS}:sequences"]
    planned = run("prune", *words, "--dry-run", "--json")
    assert len(planned["drop"]) == 2
    run("prune", *words, "--out", tmp_path / "small")
    facts = run("compare", f"{NETWORKS}:encoder", tmp_path / "small", "--input", "2,3,8", "--json")
    assert facts["pruned"]["cost"]["params"] * 2 == facts["dense"]["cost"]["params"]
    assert "2 of 4 blocks dropped" in run("prune", *words, "--dry-run")
    said = run("prune", *words, "--criterion", "l2", "--dry-run", code=cli.FAILED)
    assert "without criterion" in said


def test_prune_when_given_minutes_then_it_prunes_and_trains_for_so_long(
    run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    words = ["--sparsity", "0.5", "--repair", "none", "--minutes", "0.02", "--out", out]
    own = ["--train", f"{NETWORKS}:batches", "--evaluate", f"{NETWORKS}:size"]
    facts = run("prune", *CONV, *words, *own, "--json")
    assert facts["after"]["macs"] <= facts["before"]["macs"] / 2
    assert [goal["met"] for goal in facts["goals"]] == [True]
    assert run("inspect", out, "--trust", "--json")["groups"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--minutes", "1"], "--minutes needs --train"),
        (["--minutes", "1", "--train", f"{NETWORKS}:batches"], "and --evaluate"),
        (["--evaluate", f"{NETWORKS}:size"], "--evaluate is for --minutes"),
    ],
)
def test_prune_when_a_budget_of_time_lacks_something_then_says_what(
    words: list[str], said: str, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    assert said in run("prune", *CONV, "--sparsity", "0.5", *words, "--out", out, code=cli.FAILED)
    assert not out.exists()


def test_list_when_no_pattern_then_a_line_for_each_name_of_each_setting(run: Run) -> None:
    rows = run("list", "--json")["names"]
    named = [(row["setting"], row["name"]) for row in rows]
    registries = {
        "criterion": criteria,
        "schedule": schedules,
        "method": methods,
        "what": kinds,
        "allocate": allocators,
        "repair": repairs,
        "sampler": samplers,
    }
    assert named == [
        *((setting, name) for setting, registry in registries.items() for name in registry),
        *(("granularity", name) for name in FORMS),
    ]
    assert all(row["what"] for row in rows)
    assert "2:4" in run("list", "n:m")


def test_list_when_a_criterion_asks_for_statistics_then_says_what_a_run_must_be_given(
    run: Run,
) -> None:
    rows = run("list", "--json")["names"]  # a sampler has the name of a criterion
    needed = {row["name"]: row["needs"] for row in rows if row["setting"] != "sampler"}
    assert needed["l2"] == needed["random"] == "weights"
    assert needed["taylor"] == "data and a loss"
    assert {needed[name] for name in repairs} == {"data"}
    asked = {name: {*needs(criteria[name])} - {"generator"} for name in criteria}
    given = {name for name, statistics in asked.items() if statistics and "grad" not in statistics}
    assert {needed[name] for name in given} <= {"data"}


def test_report_when_drawn_again_then_same_page_and_markdown(run: Run, small: Path) -> None:
    page = small / "report.html"
    first = page.read_text()
    page.unlink()
    assert str(page) in run("report", small).replace("\n", "")
    assert page.read_text() == first
    assert "| parameters |" in run("report", small, "--markdown")
    assert run("report", small, "--json") == json.loads((small / "report.json").read_text())


def test_report_when_a_saved_folder_has_none_then_says_what_went_by_its_plan(
    run: Run, small: Path
) -> None:
    told = run("report", small, "--json")
    for name in ("report.json", "report.html"):
        (small / name).unlink()
    drawn = run("report", small, "--trust", "--json")
    for side in ("before", "after"):
        assert {k: drawn[side][k] for k in ("params", "macs")} == {
            k: told[side][k] for k in ("params", "macs")
        }
    assert drawn["structure"]["groups"] == told["structure"]["groups"]
    assert drawn["after"]["params"] < drawn["before"]["params"]
    assert "load_pruned" in drawn["loads_with"]
    assert run("report", CONV[0], *CONV[1:], "--json")["loads_with"].endswith("nothing was cut")


def test_report_when_a_folder_was_pruned_twice_then_before_is_the_dense_model(
    run: Run, small: Path, tmp_path: Path
) -> None:
    dense = run("report", small, "--json")["before"]["params"]
    run("prune", small, "--trust", "--sparsity", "0.5", "--out", tmp_path / "again")
    (tmp_path / "again" / "report.json").unlink()
    drawn = run("report", tmp_path / "again", "--trust", "--json")
    assert drawn["before"]["params"] == dense
    assert drawn["after"]["params"] < dense / 2


@pytest.mark.parametrize("words", [["--out", ""], ["--out="], ["--config", ""], ["--sparsity", ""]])
def test_command_when_an_option_is_empty_then_says_which(
    words: list[str], run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--sparsity", "0.5", *words] if "--sparsity" not in words else words
    said = run("prune", *CONV, *given, code=cli.FAILED)
    assert words[0].rstrip("=") in said
    assert "no text is given" in said
    assert not list(tmp_path.iterdir())


def test_prune_when_what_is_to_be_streamed_is_no_folder_then_says_what_is(
    run: Run, tmp_path: Path
) -> None:
    words = ["--stream", "--sparsity", "0.5", "--out", tmp_path / "out"]
    said = run("prune", CONV[0], *words, code=cli.FAILED)
    assert "--stream reads a folder of Hugging Face's" in said
    assert "save_pretrained" in said


def test_report_when_folder_has_none_then_one_line(run: Run, tmp_path: Path) -> None:
    assert run("report", tmp_path, code=cli.FAILED).startswith("error: ")


@pytest.mark.parametrize("place", ["a file", "in a file"])
@pytest.mark.parametrize("command", ["prune", "search", "export"])
def test_command_when_its_folder_cannot_be_written_then_that_is_said_first(
    command: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    out = taken if place == "a file" else taken / "small"
    never = f"{NETWORKS}:never"  # whoever looks for it has begun to work
    more = {
        "prune": ["--sparsity", "0.5", "--train", never],
        "search": ["--sparsity", "0.5", "--evaluate", never],
        "export": ["--torch-export"],
    }[command]
    assert cli.main([command, *CONV, *more, "--out", str(out)]) != cli.DONE
    said = capsys.readouterr().err
    assert "is a file, and no folder" in " ".join(said.split())
    assert taken.read_text() == "mine"
