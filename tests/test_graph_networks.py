"""Graph networks: channels are free, whatever an index gathers and scatters along the nodes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur as sc

layers = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed")

Layer = Callable[[int, int], nn.Module]


def mlp(width: int, wide: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 12), nn.ReLU(), nn.Linear(12, wide))


# two layers of a kind: how it is made, heads, and which groups of the first one are exact
KINDS: dict[str, tuple[Layer, int, dict[str, int]]] = {
    "gcn": (layers.GCNConv, 1, {"a.lin": 16}),
    "sage": (layers.SAGEConv, 1, {"a.lin_l": 16}),
    "sage-max": (lambda i, o: layers.SAGEConv(i, o, aggr="max"), 1, {"a.lin_l": 16}),
    "sage-projected": (
        lambda i, o: layers.SAGEConv(i, o, project=True, normalize=True),
        1,
        {"a.lin": 6, "a.lin_l": 16, "b.lin": 16},
    ),
    "gat": (lambda i, o: layers.GATConv(i, o, heads=2), 2, {"a.lin": 2, "a.lin[1]": 8}),
    "gatv2": (lambda i, o: layers.GATv2Conv(i, o, heads=2), 2, {"a.lin_l": 2, "a.lin_l[1]": 8}),
    "transformer": (lambda i, o: layers.TransformerConv(i, o, heads=2), 2, {"a.lin_query": 2}),
    "gin": (
        lambda i, o: layers.GINConv(mlp(i, o)),
        1,
        {"a.nn.0": 12, "a.nn.2": 16, "b.nn.0": 12},
    ),
    "edge": (
        lambda i, o: layers.EdgeConv(mlp(2 * i, o)),
        1,
        {"a.nn.0": 12, "a.nn.2": 16, "b.nn.0": 12},
    ),
}


class Network(nn.Module):
    def __init__(self, make: Layer, heads: int):
        super().__init__()
        self.a = make(6, 16 // heads)
        self.b = make(16, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.b(self.a(x, edges).relu(), edges)


def graph(nodes: int, edges: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(nodes, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, nodes, (2, edges), generator=generator)


@pytest.mark.filterwarnings("ignore")  # of the library, about itself
@pytest.mark.parametrize("kind", KINDS)
def test_prune_when_layers_pass_messages_then_channels_go_exactly_on_any_graph(kind):
    make, heads, exact = KINDS[kind]
    torch.manual_seed(0)
    model = Network(make, heads).double().eval()
    structure = sc.analyze(model, graph(10, 30))
    assert {g.name: g.size for g in structure.exact} == exact
    assert not structure.unknown
    result = sc.prune(model, graph(10, 30), sparsity=0.5)
    assert result.verification.passed
    assert result.after.params < 0.7 * result.before.params
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in result.masks.items():
            twin.get_parameter(name).mul_(mask)
        other = graph(13, 50, seed=1)
        torch.testing.assert_close(result.model(*other), twin(*other))
