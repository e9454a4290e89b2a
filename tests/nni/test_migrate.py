"""Scripts written for NNI: their imports rewritten, and a list of what has no counterpart."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import secateur
from secateur.errors import FileError
from secateur.nni.migrate import main, migrate

REWRITTEN = {
    "from nni.compression.pruning import L1NormPruner": (
        "from secateur.nni.pruning import L1NormPruner"
    ),
    "from nni.compression import TorchEvaluator, LightningEvaluator": (
        "from secateur.nni import TorchEvaluator, LightningEvaluator"
    ),
    "from nni.compression.pruning import (  # all\n    AGPPruner,\n    SlimPruner as S,  # 1\n)": (
        "from secateur.nni.pruning import (  # all\n    AGPPruner,\n    SlimPruner as S,  # 1\n)"
    ),
    "from nni.compression.speedup import ModelSpeedup; x = 1": (
        "from secateur.nni.speedup import ModelSpeedup; x = 1"
    ),
    "from nni.compression.utils.counter import count_flops_params": (
        "from secateur.nni.utils.counter import count_flops_params"
    ),
    "from nni.compression.base.setting import PruningSetting": (
        "from secateur.nni.base.setting import PruningSetting"
    ),
    "from nni.compression.utils.external.external_replacer import TransformersAttentionReplacer": (
        "from secateur.nni.utils.external.external_replacer import TransformersAttentionReplacer"
    ),
    # where NNI defines a name rather than where it offers it
    "from nni.compression.pruning.basic_pruner import L1NormPruner, FPGMPruner": (
        "from secateur.nni.pruning import L1NormPruner, FPGMPruner"
    ),
    "from nni.compression.utils.evaluator import TorchEvaluator": (
        "from secateur.nni import TorchEvaluator"
    ),
    # NNI 2.x
    "from nni.compression.pytorch.pruning import L1NormPruner, LotteryTicketPruner": (
        "from secateur.nni.pytorch.pruning import L1NormPruner, LotteryTicketPruner"
    ),
    "from nni.compression.pytorch import TorchEvaluator": (
        "from secateur.nni.pytorch import TorchEvaluator"
    ),
    "from nni.compression.pytorch.speedup.v2 import ModelSpeedup": (
        "from secateur.nni.pytorch.speedup.v2 import ModelSpeedup"
    ),
    "from nni.compression.pytorch.utils.counter import count_flops_params": (
        "from secateur.nni.pytorch.utils.counter import count_flops_params"
    ),
    "from nni.algorithms.compression.v2.pytorch.pruning.tools import AGPTaskGenerator": (
        "from secateur.nni.pytorch.pruning.tools import AGPTaskGenerator"
    ),
    "from nni.algorithms.compression.v2.pytorch.pruning.basic_pruner import FPGMPruner": (
        "from secateur.nni.pytorch.pruning import FPGMPruner"
    ),
    "from nni.algorithms.compression.v2.pytorch import TorchEvaluator": (
        "from secateur.nni.pytorch import TorchEvaluator"
    ),
    # what 3.0 has, where 2.10 tried it
    "from nni.contrib.compression.pruning import L1NormPruner": (
        "from secateur.nni.pruning import L1NormPruner"
    ),
    "from nni.contrib.compression import TorchEvaluator": "from secateur.nni import TorchEvaluator",
    "from nni.contrib.compression.utils import auto_set_denpendency_group_ids": (
        "from secateur.nni.utils import auto_set_denpendency_group_ids"
    ),
    "from nni.compression.pruning import *": "from secateur.nni.pruning import *",
    "from nni.compression import pruning": "from secateur.nni import pruning",
    "from nni import compression": "from secateur import nni as compression",
    "from nni import compression as c, trace": (
        "from secateur import nni as c\nfrom secateur.nni import trace"
    ),
    "from nni import trace": "from secateur.nni import trace",
    "from nni.common.types import SCHEDULER": "from secateur.nni.common.types import SCHEDULER",
    "import nni\nsgd = nni.trace(SGD)(lr=nni.trace(1))": (
        "import secateur.nni\nsgd = secateur.nni.trace(SGD)(lr=secateur.nni.trace(1))"
    ),
    "import nni\n@nni.trace\nclass A: pass": (
        "import secateur.nni\n@secateur.nni.trace\nclass A: pass"
    ),
    "import nni as n\nn.trace(1)": "import secateur.nni as n\nn.trace(1)",
    "import nni.compression.pruning\np = nni.compression.pruning.L1NormPruner(m, c)": (
        "import secateur.nni.pruning\np = secateur.nni.pruning.L1NormPruner(m, c)"
    ),
    "import nni.compression.pruning as P\np = P.L1NormPruner": (
        "import secateur.nni.pruning as P\np = P.L1NormPruner"
    ),
    "import torch, nni, os": "import torch\nimport secateur.nni\nimport os",
    "if 1:\n    import os, nni": "if 1:\n    import os\n    import secateur.nni",
    "def f():\n    from nni.compression.pruning import SlimPruner\n    return SlimPruner": (
        "def f():\n    from secateur.nni.pruning import SlimPruner\n    return SlimPruner"
    ),
    "é = 'ü'; import nni; ö = nni.trace(é)": (
        "é = 'ü'; import secateur.nni; ö = secateur.nni.trace(é)"
    ),
    "x = 'ä'\nimport nni\f\nnni.trace(x)": (
        "x = 'ä'\nimport secateur.nni\f\nsecateur.nni.trace(x)"
    ),
    "import nni\r\nnni.trace(1)\r\n": "import secateur.nni\r\nsecateur.nni.trace(1)\r\n",
    "import torch\nfrom .nni.compression import x\nfrom mynni import y": None,
    "import secateur.nni": None,
    "": None,
}


@pytest.mark.parametrize("before", REWRITTEN, ids=lambda text: text[:70])
def test_migrate_when_all_has_a_counterpart_then_nothing_is_left(before):
    done = migrate(before)
    assert done.text == (before if REWRITTEN[before] is None else REWRITTEN[before])
    assert done.left == []
    assert bool(done.changed) == (REWRITTEN[before] is not None)
    ast.parse(done.text)
    assert migrate(done.text).changed == 0


LEFT = {
    "from nni.compression.quantization import QATQuantizer": ("torchao", None),
    "from nni.contrib.compression.quantization import QATQuantizer": ("torchao", None),
    "from nni.compression.distillation import DynamicLayerwiseDistiller": ("training step", None),
    "from nni.compression.base.wrapper import ModuleWrapper": ("no wrappers", None),
    "from nni.compression.pruning import L1NormPrunr": ("Did you mean 'L1NormPruner'", None),
    "from nni.compression.pytorch.quantization import QATQuantizer": ("torchao", None),
    "from nni.algorithms.compression.pytorch.pruning import NetAdaptPruner": (
        "older than 2.x",
        None,
    ),
    "from nni.nas.nn.pytorch import LayerChoice": ("NNI has to stay installed", None),
    "import nni\nnni.report_final_result(1)": ("NNI has to stay installed", None),
    "import nni.nas": ("NNI has to stay installed", None),
    "from nni.compression.utils import TorchEvaluator, Scaling": (
        "secateur.scoring.granularity",
        "from secateur.nni.utils import TorchEvaluator\nfrom nni.compression.utils import Scaling",
    ),
    "import nni\nnni.trace(1)\nnni.get_next_parameter()": (
        "NNI has to stay installed",
        "import nni\nimport secateur.nni\nsecateur.nni.trace(1)\nnni.get_next_parameter()",
    ),
    "import nni as n\nn.get_next_parameter()": ("NNI has to stay installed", None),
    "import nni\ndef f(nni): return nni.trace": (
        "something else as well",
        None,
    ),
    "mock.patch('nni.compression.pruning.L1NormPruner')": ("by hand", None),
}


@pytest.mark.parametrize("before", LEFT, ids=lambda text: text[:70])
def test_migrate_when_something_has_no_counterpart_then_it_stays_and_is_listed(before):
    why, after = LEFT[before]
    done = migrate(before)
    assert done.text == (after or before)
    assert len(done.left) == 1
    assert why in done.left[0].why
    assert done.left[0].name.rpartition(".")[2] in before.splitlines()[done.left[0].line - 1]
    ast.parse(done.text)


def test_migrate_when_another_name_of_nni_has_to_stay_then_all_its_uses_are_listed():
    text = "import nni as n\nn.compression.pruning.L1NormPruner\nn.get_next_parameter()"
    done = migrate(text)
    assert (done.text, [each.line for each in done.left]) == (text, [2, 3])


def test_migrate_when_a_rewritten_script_is_run_then_its_names_are_there():
    lines = [text for text in REWRITTEN if text.startswith("from nni.c")]
    exec(migrate("\n".join(line for line in lines)).text, {})


@pytest.mark.parametrize("text", ["import (", "print 1", "\0"])
def test_migrate_when_the_text_is_no_python_then_says_so(text):
    with pytest.raises(FileError, match="is no Python"):
        migrate(text)


SCRIPT = """# -*- coding: latin-1 -*-
import nni  # prunes caf\xe9s
from nni.compression.pruning import L1NormPruner
from nni.compression.quantization import QATQuantizer
optimizer = nni.trace(dict)()
"""


def test_main_when_files_are_given_then_they_are_rewritten_in_place_and_the_rest_is_listed(
    tmp_path: Path, capsys
):
    good, bad, none = tmp_path / "good.py", tmp_path / "bad.py", tmp_path / "none.py"
    good.write_bytes(SCRIPT.replace("\n", "\r\n").encode("latin-1"))
    bad.write_text("import (")
    assert main([str(good), str(bad), str(none)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{good}: 3 changes, 1 left"
    assert lines[1].startswith(
        f"{good}:4: nni.compression.quantization.QATQuantizer: secateur does"
    )
    assert "is no Python" in lines[2]
    assert str(none) in lines[3]
    written = good.read_bytes().decode("latin-1")
    assert written.count("\r\n") == SCRIPT.count("\n")
    assert "import secateur.nni  # prunes caf\xe9s\r\n" in written
    assert "secateur.nni.trace(dict)()" in written


def test_module_when_run_then_it_is_main(tmp_path: Path):
    path = tmp_path / "script.py"
    path.write_text("from nni.compression.pruning import L1NormPruner\n")
    source = Path(secateur.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-m", "secateur.nni.migrate", str(path)],
        env={**os.environ, "PYTHONPATH": str(source)},
        check=True,
    )
    assert path.read_text() == "from secateur.nni.pruning import L1NormPruner\n"


def test_main_when_nothing_is_left_then_succeeds(tmp_path: Path, capsys):
    path = tmp_path / "script.py"
    path.write_text("from nni.compression.pruning import L1NormPruner\n")
    assert main([str(path)]) == 0
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: 1 changes, 0 left\n{path}: 0 changes, 0 left\n"


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--help"], 0)])
def test_main_when_no_file_is_given_then_says_how_it_is_called(arguments, status, capsys):
    assert main(arguments) == status
    assert "python -m secateur.nni.migrate FILE" in capsys.readouterr().out


NOTEBOOK = [
    "%pip install nni\n!ls\n",
    "import nni\nfrom nni.compression.pruning import L1NormPruner",
    "%%bash\nfrom nni.compression import speedup\n",
    "def f():\n    %time nni.trace(dict)()\n    return nni.trace(dict)\n",
    "",
]


@pytest.mark.parametrize("lines", [False, True], ids=["text", "lines"])
def test_main_when_given_a_notebook_then_its_code_cells_are_rewritten(lines, tmp_path, capsys):
    path = tmp_path / "script.ipynb"

    def cell(code: str, kind: str = "code") -> dict[str, object]:
        source = code.splitlines(keepends=True) if lines else code
        return {"cell_type": kind, "source": source, "metadata": {"é": 1}}

    cells = [cell("# nni.trace", "markdown"), *map(cell, NOTEBOOK)]
    path.write_text(json.dumps({"cells": cells, "nbformat": 4}), encoding="utf-8")
    assert main([str(path)]) == 0
    assert "3 changes, 0 left" in capsys.readouterr().out
    found = json.loads(path.read_text(encoding="utf-8"))
    assert [each["metadata"] for each in found["cells"]] == [{"é": 1}] * 6
    sources = ["".join(each["source"]) for each in found["cells"]]
    assert all(isinstance(each["source"], list) is lines for each in found["cells"])
    assert sources[:2] == ["# nni.trace", NOTEBOOK[0]]
    assert "from secateur.nni.pruning import L1NormPruner" in sources[2]
    assert sources[3] == NOTEBOOK[2]
    assert "import secateur.nni" in sources[2]
    assert "return secateur.nni.trace(dict)" in sources[4]
    assert "%time nni.trace(dict)()" in sources[4]
    assert sources[5] == ""


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"cells": [{"cell_type": "code"}]}'])
def test_main_when_a_notebook_is_none_then_it_says_so(text, tmp_path, capsys):
    path = tmp_path / "script.ipynb"
    path.write_text(text)
    assert main([str(path)]) == 1
    assert "is no notebook that can be read" in capsys.readouterr().out
    assert path.read_text() == text
