"""Sizes that outlive their trace: a traced number is found in no cache, and left in none."""

from __future__ import annotations

import gc
import sys
from types import ModuleType

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

import secateur as sc
from secateur.graph import record
from secateur.graph.integers import TracedInt

# Each form is how somebody's code may keep what it computed from sizes: ``get(module, x)`` returns
# the shape (batch, length, heads, width) of a projection.  The last is what a block does with it.
FORMS = {
    "lru_cache": """
@functools.lru_cache
def sizes(n, h, c): return -1, n, h, c // h
def get(s, x): return sizes(x.shape[1], s.h, x.shape[2])
""",
    "cache of a shape, by keyword": """
@functools.cache
def sizes(shape, *, heads): return *shape[:-1], heads, shape[-1] // heads
def get(s, x): return sizes(x.shape, heads=s.h)
""",
    "cached methods": """
class Helper:
    @functools.lru_cache
    def own(self, h): return h
    @classmethod
    @functools.cache
    def shared(cls, n, h): return h, n // h
    @staticmethod
    @functools.lru_cache(maxsize=2, typed=True)
    def plain(n): return n
HELPER = Helper()
def get(s, x): return -1, Helper.plain(x.shape[1]), *HELPER.shared(x.shape[2], HELPER.own(s.h))
""",
    "cache in a partial, in a table": """
@functools.lru_cache
def sizes(first, n, h, c): return first, n, h, c // h
TABLE = {"a": functools.partial(sizes, -1), "b": sizes}
def get(s, x): return TABLE["a"](x.shape[1], s.h, x.shape[2])
""",
    "cache of an object as key": """
from dataclasses import dataclass
@dataclass(frozen=True)
class Key:
    n: int
    h: int
@functools.lru_cache
def sizes(key): return key.h, key.n // key.h
def get(s, x): return *x.shape[:2], *sizes(Key(x.shape[2], s.h))
""",
    "cache below a decorator": """
def decorated(f):
    @functools.wraps(f)
    def inner(*a): return f(*a)
    return inner
@decorated
@functools.lru_cache
def sizes(n, h): return h, n // h
def get(s, x): return *x.shape[:2], *sizes(x.shape[2], s.h)
""",
    "dict, in": """
CACHE = {}
def get(s, x):
    key = x.shape[2], s.h
    if key not in CACHE:
        CACHE[key] = s.h, x.shape[2] // s.h
    return *x.shape[:2], *CACHE[key]
""",
    "dict, try, of a shape": """
CACHE = {}
def get(s, x):
    try:
        return CACHE[x.shape, s.h]
    except KeyError:
        pass
    CACHE[x.shape, s.h] = *x.shape[:2], s.h, x.shape[2] // s.h
    return CACHE[x.shape, s.h]
""",
    "dict, get, of a number": """
CACHE = {}
def get(s, x):
    found = CACHE.get(s.h)
    if found is None:
        found = CACHE[s.h] = s.h, -1
    return *x.shape[:2], *found
""",
    "dict, setdefault, of a class": """
class Store:
    table = {}
def get(s, x):
    key = x.shape[2], s.h
    return *x.shape[:2], *Store.table.setdefault(key, (s.h, x.shape[2] // s.h))
""",
    "dict of each module": """
def get(s, x):
    if not hasattr(s, "kept"):
        s.kept = {}
    if (s.h, x.shape[2]) not in s.kept:
        s.kept[s.h, x.shape[2]] = s.h, x.shape[2] // s.h
    return *x.shape[:2], *s.kept[s.h, x.shape[2]]
""",
    "dicts by device": """
from collections import defaultdict
CACHES = defaultdict(dict)
def get(s, x):
    cache, key = CACHES[x.device], (x.shape[2], s.h)
    if key not in cache:
        cache[key] = s.h, x.shape[2] // s.h
    return *x.shape[:2], *cache[key]
""",
    "memory of a closure": """
def memoised(f):
    seen = {}
    def inner(*a):
        if a not in seen:
            seen[a] = f(*a)
        return seen[a]
    return inner
@memoised
def sizes(n, h): return h, n // h
def get(s, x): return *x.shape[:2], *sizes(x.shape[2], s.h)
""",
    "memory of a default and of a function": """
def width(n, h, memory={}):
    if (n, h) not in memory:
        memory[n, h] = n // h
    return memory[n, h]
def heads(h):
    if h not in heads.memory:
        heads.memory[h] = h
    return heads.memory[h]
heads.memory = {}
def get(s, x): return *x.shape[:2], heads(s.h), width(x.shape[2], s.h)
""",
    "object that keeps": """
class Cache:
    def __init__(self): self.held = {}
    def find(self, key): return self.held.get(key)
    def put(self, key, value): self.held[key] = value
CACHE = Cache()
def get(s, x):
    key = x.shape[2], s.h
    found = CACHE.find(key)
    if found is None:
        found = s.h, x.shape[2] // s.h
        CACHE.put(key, found)
    return *x.shape[:2], *found
""",
    "least recently used, by hand": """
from collections import OrderedDict
CACHE = OrderedDict()
def get(s, x):
    key = x.shape[2], s.h
    if key in CACHE:
        CACHE.move_to_end(key)
    else:
        CACHE[key] = s.h, x.shape[2] // s.h
        if len(CACHE) > 2:
            CACHE.popitem(last=False)
    return *x.shape[:2], *CACHE[key]
""",
    "dict of texts": """
CACHE = {}
def get(s, x):
    key = f"{x.shape[2]} {s.h}"
    if key not in CACHE:
        CACHE[key] = s.h, x.shape[2] // s.h
    return *x.shape[:2], *CACHE[key]
""",
    "cached tensors": """
ONES = {}
@functools.cache
def one(): return torch.ones(1)
@functools.lru_cache
def ones(n): return torch.ones(n)
def get(s, x):
    if (s.h, x.device) not in ONES:
        ONES[s.h, x.device] = torch.ones(s.h, 1)
    s.scale = ONES[s.h, x.device]
    x.mul_(ones(x.shape[2])).mul_(one())
    return *x.shape[:2], s.h, x.shape[2] // s.h
""",
    "lists and names": """
SHAPES, LAST = [], None
def get(s, x):
    global LAST
    LAST = x.shape
    SHAPES.append(x.shape)
    s.shape, s.history = x.shape, [*getattr(s, "history", ()), s.h]
    return *x.shape[:2], s.h, x.shape[2] // s.h
""",
    "sets and tables of the forward's own": """
def get(s, x):
    y = x + 1
    assert len({t.shape for t in (x, y)}) == 1 == len(set(t.shape[2] for t in (x, y)))
    of = {x.shape[1]: "length", x.shape[2]: "width"}
    assert of[y.shape[2]] == "width" and y.shape[1] in of and y.shape[0] in (2, 3)
    assert {2: 1, 3: 1, 4: 1}[s.h] and {2: 0, 3: 0, 4: 0}.get(s.h, 1) == 0
    return *x.shape[:2], s.h, x.shape[2] // s.h
""",
    "einops": """
from einops import rearrange, repeat
def get(s, x):
    ones = repeat(torch.ones(x.shape[1]), "n -> b n 1", b=x.shape[0])
    return rearrange(x * ones, "b n (h d) -> b n h d", h=s.h).shape
""",
    "a block": """
import functools, torch
from torch import nn
class Block(nn.Module):
    def __init__(s, d, h):
        super().__init__()
        s.h, s.q, s.k, s.v, s.o = h, *(nn.Linear(d, d) for _ in "qkvo")
    def forward(s, x):
        q, k, v = (f(x) for f in (s.q, s.k, s.v))
        q, k, v = (t.view(get(s, t)).transpose(1, 2) for t in (q, k, v))
        a = (q @ k.transpose(-1, -2) * 0.25).softmax(-1) @ v
        return x + s.o(a.transpose(1, 2).flatten(2))
def build(blocks=2, h=4):
    return nn.Sequential(*(Block(32, h) for _ in range(blocks))).eval()
""",
}
BLOCK = FORMS.pop("a block")
X = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def code(request):
    """Return a new module with a form's code, as a fresh process would have it."""
    made = []

    def new() -> ModuleType:
        module = ModuleType(f"somebodys_code_{len(made)}")
        sys.modules[module.__name__] = module
        made.append(module.__name__)
        exec(compile(BLOCK + FORMS[request.param], module.__name__, "exec"), vars(module))
        return module

    yield new
    for name in made:
        del sys.modules[name]


every_form = pytest.mark.parametrize("code", FORMS, indirect=True)


def said(structure: sc.Structure) -> list[str]:
    groups = [f"{g} {g.sized} {g.frozen}" for g in (*structure.groups, *structure.frozen)]
    return [*groups, *map(str, structure.inferred.attributes)]


def held(module: ModuleType) -> dict[str, str]:
    """Return what a module's caches hold, as text."""
    found = {}
    for name, value in vars(module).items():
        if hasattr(value, "cache_info"):
            found[name] = str(value.cache_info().currsize)
        elif isinstance(value, type):
            found |= {f"{name}.{k}": repr(v) for k, v in vars(value).items() if type(v) is dict}
        elif name != "__builtins__":
            found[name] = repr(getattr(value, "__dict__", value) if name.isupper() else value)
    return found


@every_form
def test_analyze_when_caches_are_warm_then_it_is_as_in_a_fresh_process_and_leaves_them(code):
    fresh = said(sc.analyze(code().build(), X))
    module = code()
    net = module.build()
    net(X)
    before, mine = held(module), [sorted(vars(block)) for block in net]
    assert said(sc.analyze(net, X)) == fresh, "after a forward"
    assert said(sc.analyze(module.build(), X)) == fresh, "after another analysis"
    assert held(module) == before
    assert [sorted(vars(block)) for block in net] == mine


@every_form
def test_prune_when_blocks_share_a_cache_then_each_gets_its_own_heads(code):
    net = code().build()
    net(X)
    result = sc.apply_plan(net, sc.Plan({"0.q": (0, 1), "1.q": (0, 1, 3)}), X)
    assert [block.h for block in result.model] == [2, 3]
    assert result.verification.difference < 1e-6


@pytest.mark.slow  # a process's objects are many
@every_form
@pytest.mark.parametrize("fake", [False, True])
def test_analyze_when_it_ends_then_no_traced_number_is_alive(code, fake, monkeypatch):
    def alive() -> list[object]:
        gc.collect()
        return [x for x in gc.get_objects() if type(x) in (TracedInt, FakeTensor)]

    module, known = code(), {*map(id, alive())}
    fresh = said(sc.analyze(code().build(), X))
    if fake:
        monkeypatch.setattr(record, "LARGE", 0)
    assert said(sc.analyze(module.build(), X)) == fresh
    assert [x for x in alive() if id(x) not in known] == []
    module.build()(X)  # on real tensors
    sc.prune(module.build(3), X, 0.5)
    assert said(sc.analyze(module.build(), X)) == fresh


@pytest.mark.parametrize("code", ["cached tensors", "lists and names", "einops"], indirect=True)
def test_analyze_when_a_forward_on_fake_tensors_ends_then_caches_are_as_before(code, monkeypatch):
    module = code()
    before = held(module)
    monkeypatch.setattr(record, "LARGE", 0)
    sc.analyze(module.build(), X)
    assert held(module) == before
    module.build(1)(X)


def test_analyze_when_a_cache_has_entries_that_nobody_makes_then_they_are_found():
    module = ModuleType("somebodys_table")
    table = """
TABLE = {2: 1, 3: 1, 4: 1}
def get(s, x):
    TABLE[x.shape[2]] = TABLE[s.h]
    return *x.shape[:2], s.h, x.shape[2] // s.h
"""
    exec(BLOCK + table, vars(module))
    assert [g.size for g in sc.analyze(module.build(1), X).groups] == [4, 8, 8]
    assert module.TABLE == {2: 1, 3: 1, 4: 1}
