"""Models with complex weights: what data says of their real ones, and what stays unsaid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur


class Spectral(nn.Module):
    """Products per frequency, as a Fourier neural operator has them, among real layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Conv1d(2, 8, 1)
        self.weight = nn.Parameter(0.3 * torch.randn(4, 8, 10, dtype=torch.complex128))
        self.skip = nn.Conv1d(8, 10, 1)
        self.mix = nn.Conv1d(10, 14, 1)
        self.head = nn.Conv1d(14, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        waves = torch.fft.rfft(x)[..., :4].permute(2, 0, 1)
        made = torch.bmm(waves, self.weight).permute(1, 2, 0)
        x = torch.fft.irfft(made, n=x.shape[-1]) + self.skip(x)
        return self.head(torch.relu(self.mix(torch.relu(x))))


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(2, 12, dtype=torch.complex128))
        self.last = nn.Parameter(torch.randn(12, 3, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return ((x.mT.to(self.first.dtype) @ self.first) @ self.last).abs()


@pytest.mark.parametrize("criterion", ["activation", "wanda", "obs", "elimination", "fluctuation"])
@pytest.mark.parametrize("kind", [Spectral, Complex])
def test_prune_when_weights_are_complex_then_data_is_of_the_real_ones_and_the_cut_exact(
    kind: type[nn.Module], criterion: str
):
    torch.manual_seed(0)
    model = kind().double()
    data = [torch.randn(4, 2, 16, dtype=torch.float64) for _ in range(4)]
    result = secateur.prune(model, data[0], sparsity=0.5, criterion=criterion, data=data)
    assert result.verification.passed
    assert result.after.params < result.before.params
    assert result.repair.after.error <= result.repair.before.error
