"""What counts of a function or of data, and what does not, by examples of either."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import UserDict
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.runtime.digests import digest_of
from secateur.runtime.fingerprints import facts_of
from secateur.runtime.sameness import differences

BEGUN = """
import functools, torch
calls, LIMIT, WORDS, data = 0, 8, ["a"], torch.zeros(3)
def helper(x):
    return x + 1
class Judge:
    def __init__(self, table):
        self.table, self.calls = table, 0
    def __call__(self, model):
        self.calls += 1
        return self.table.sum()
    def method(self, model):
        return self.table.sum()
def made(limit):
    def evaluate(model):
        return limit
    return evaluate
"""


def facts(text: str, begun: str = BEGUN) -> dict[str, Any]:
    """Return the facts of what a text says ``f`` is, as a file has them."""
    known: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(begun + text, "users.py", "exec"), known)
    found: dict[str, Any] = json.loads(json.dumps(facts_of(known["f"])))
    return found


OTHER = {
    "code": ("f = lambda m: m + 1", "f = lambda m: m - 1"),
    "a constant": ("f = lambda m: 1.0", "f = lambda m: 2.0"),
    "a name": ("f = lambda m: max(m)", "f = lambda m: min(m)"),
    "a number of the module": ("f = lambda m: LIMIT", "LIMIT = 9\nf = lambda m: LIMIT"),
    "a tensor of the module": ("f = lambda m: data", "data = data + 1\nf = lambda m: data"),
    "a function around it": ("f = made(1)", "f = made(2)"),
    "a default": ("f = lambda m, n=1: n", "f = lambda m, n=2: n"),
    "a keyword default": ("f = lambda m, *, n=1: n", "f = lambda m, *, n=2: n"),
    "a helper": (
        "f = lambda m: helper(m)",
        "def helper(x):\n    return x + 2\nf = lambda m: helper(m)",
    ),
    "a partial": ("f = functools.partial(helper, 1)", "f = functools.partial(helper, 2)"),
    "below no_grad": (
        "@torch.no_grad()\ndef f(m):\n    return 1",
        "@torch.no_grad()\ndef f(m):\n    return 2",
    ),
    "what is in it": (
        "def f(m):\n    return (lambda x: x)(m)",
        "def f(m):\n    return (lambda x: 2)(m)",
    ),
    "an object": ("f = Judge(data)", "f = Judge(data + 1)"),
    "a built-in": ("f = max", "f = min"),
    "nothing": ("f = None", "f = len"),
}
SAME = {
    "its place": ("f = lambda m: m + 1", "\n\n\nf = lambda m: m + 1"),
    "its docstring": ("def f(m):\n    return 1", 'def f(m):\n    "What."\n    return 1'),
    "calls counted in the module": (
        "def f(m):\n    global calls\n    calls += 1",
        "def f(m):\n    global calls\n    calls += 1\ncalls = 7",
    ),
    "calls counted around it": (
        "def of(n):\n    def f(m):\n        nonlocal n\n        n += 1\n    return f\nf = of(1)",
        "def of(n):\n    def f(m):\n        nonlocal n\n        n += 1\n    return f\nf = of(2)",
    ),
    "a list": ("f = lambda m: WORDS", "WORDS = []\nf = lambda m: WORDS"),
    "calls counted in an object": ("f = Judge(data)", "f = Judge(data)\nf(1)"),
    "a function that calls itself": (
        "def f(m):\n    return f(m)",
        "def f(m):\n    return f(m)",
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_facts_of_a_function_when_what_it_computes_is_other_then_they_are(name: str) -> None:
    one, other = map(facts, OTHER[name])
    assert list(differences(one, other)), name
    assert list(differences(other, one)), name


@pytest.mark.parametrize("name", [*SAME, *OTHER])
def test_facts_of_a_function_when_it_computes_the_same_then_they_are_the_same(name: str) -> None:
    one, other = map(facts, SAME.get(name, (OTHER[name][0],) * 2 if name in OTHER else ()))
    assert not list(differences(one, other)), name


def test_facts_when_the_python_is_another_then_codes_are_not_compared() -> None:
    one, other = facts("f = lambda m: helper(m)"), facts("f = lambda m: helper(m)")
    other |= {"python": "3.0", "code": "of another version"}
    other["reads"] = {**other["reads"], "helper": "code 3.0 abc"}
    assert not list(differences(one, other))
    assert list(differences(one, {**other, "reads": {"helper": 3}}))


def test_facts_when_another_process_makes_them_then_they_are_the_same() -> None:
    text = (
        "from secateur.runtime.fingerprints import facts_of\n"
        "f = lambda m: m in {'a', 'b', 'c', 'd', 'e'}\n"
        "print(facts_of(f)['code'])"
    )
    run = partial(subprocess.run, [sys.executable, "-c", text], capture_output=True, check=True)
    assert run(env={"PYTHONHASHSEED": "1"} | _path()).stdout == (
        run(env={"PYTHONHASHSEED": "2"} | _path()).stdout
    )


def _path() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(sys.path)}


def _large(at: int) -> Tensor:
    found = torch.zeros(5000)
    found[at] = 1.0
    return found


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "a tensor": lambda x: x,
    "a pair": lambda x: (x, 1),
    "keywords": lambda x: {"x": x, "y": None},
    "a tokenizer's batch": lambda x: UserDict({"x": x}),
    "an array": lambda x: x.numpy(),
    "an object": lambda x: SimpleNamespace(x=[x]),
    "a sparse tensor": lambda x: x.to_sparse(),
    "bfloat16": lambda x: x.bfloat16(),
    "complex": lambda x: torch.complex(x, x).conj(),
    "one of no dimension": lambda x: x.argmax(),
}


@pytest.mark.parametrize("form", FORMS)
def test_digest_of_inputs_when_one_number_is_other_then_it_is(form: str) -> None:
    of = FORMS[form]
    assert digest_of(of(_large(2000))) == digest_of(of(_large(2000)))
    assert digest_of(of(_large(2000))) != digest_of(of(_large(2001)))


def test_digest_of_inputs_when_parts_lie_elsewhere_then_it_is_other() -> None:
    seen: list[Any] = [["ab", "c"], ["a", "bc"], [["ab"], "c"], ["ab", ["c"]], ("ab", "c")]
    seen += [np.zeros(2), torch.zeros(2), [0.0, 0.0], torch.zeros(1, 2), torch.zeros(2).double()]
    assert len({digest_of(each) for each in seen}) == len(seen)
    loop: list[Any] = [1]
    loop.append(loop)
    assert digest_of(loop) == digest_of(loop)
