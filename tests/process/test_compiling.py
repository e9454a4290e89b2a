"""torch.compile keeps functions by what they are: what a trial put in their place it never sees.

Each runs in a process of its own, where pruning is what first makes torch import its compiler.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import math, torch, secateur as sc
from torch import nn

class Numbers(nn.Module):
    def forward(self, x):
        n = x.shape[1]
        powers = math.log(n) + math.log2(n) + math.log10(n)
        return x * powers + math.isqrt(n) + math.gcd(n, 6) + math.comb(n, 2) + math.perm(n, 1)

class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x):
        return self.encoder(x)

class Calling(nn.Module):
    @torch.compile(backend="eager")
    def scaled(self, x, n):
        return x / math.log(n)

    def forward(self, x):
        return self.scaled(x, x.shape[1])

def small():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()

x = torch.rand(2, 5, 16)
model = nn.Sequential({model}, small()).eval()
before = (math.log, math.isqrt, torch.backends.mha.get_fastpath_enabled)
{ways}
assert before == (math.log, math.isqrt, torch.backends.mha.get_fastpath_enabled)
with torch.no_grad():
    for each in (model, Numbers(), Attentive().eval()):
        torch.compiler.reset()
        found = torch.compile(each, fullgraph=True, backend="eager")(x)
        torch.testing.assert_close(found, each(x))
"""

WAYS = {
    "analyzed": "sc.analyze(model, x)",
    "pruned with data": "sc.prune(model, x, 0.5, data=[torch.rand(4, 5, 16) for _ in range(3)])",
    "refused": """
try:
    sc.prune(model, x[..., 0], 0.5)
except sc.errors.SecateurError:
    pass
else:
    raise AssertionError("pruned")
""",
}


@pytest.mark.parametrize(
    ("way", "model"),
    [
        pytest.param("analyzed", "Numbers()", marks=pytest.mark.slow),
        ("pruned with data", "Attentive()"),
        pytest.param("pruned with data", "Calling()", marks=pytest.mark.slow),
        pytest.param("pruned with data", "Numbers()", marks=pytest.mark.slow),
        pytest.param("refused", "Numbers()", marks=pytest.mark.slow),
    ],
)
def test_compile_when_something_was_pruned_first_then_models_are_one_graph(
    way: str, model: str
) -> None:
    code = SCRIPT.format(model=model, ways=WAYS[way])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
