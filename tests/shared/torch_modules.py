"""A module with everything in it that `skip_init` and `assign_into` must get right."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn


def cut_off_normal(tensor: Any, std: float = 1.0) -> Any:
    """As vision libraries have written it for years, with the tensor's own methods."""
    with torch.no_grad():
        low = 2 * (0.5 * math.erfc(2.0 / math.sqrt(2.0))) - 1
        return tensor.uniform_(low, -low).erfinv_().mul_(std * math.sqrt(2.0)).clamp_(-2 * std, 2 * std)


class Everything(nn.Module):
    """Each way of making a parameter that detectors and segmenters use, and buffers that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 12)
        self.convolution = nn.Conv2d(3, 6, 3)
        self.embedding = nn.Embedding(20, 12, padding_idx=0)
        self.attention = nn.MultiheadAttention(12, 3)
        self.norm = nn.LayerNorm(12)
        self.batch_norm = nn.BatchNorm2d(6)
        self.recurrent = nn.LSTM(12, 6, num_layers=2)
        self.token = nn.Parameter(torch.zeros(1, 1, 12))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.position = nn.Parameter(torch.randn(1, 5, 12) * 0.02)
        self.scale = nn.Parameter(torch.full((12,), 4.6))
        self.orthogonal = nn.Parameter(torch.empty(6, 6))
        nn.init.orthogonal_(self.orthogonal)
        self.sparse = nn.Parameter(torch.empty(6, 6))
        nn.init.sparse_(self.sparse, sparsity=0.5)
        layer = nn.Linear(12, 12)
        layer.weight.data.normal_(mean=0.0, std=0.02)
        layer.bias.data.zero_()
        self.layers = nn.ModuleList([copy.deepcopy(layer) for _ in range(2)])
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
                nn.init.normal_(parameter.detach()[:3])
                nn.init.kaiming_normal_(parameter.data.t())
                nn.init.kaiming_uniform_(tensor=parameter)
        self.vision = nn.Linear(12, 12)
        cut_off_normal(self.vision.weight, std=0.02)
        nn.init.constant_(self.vision.bias, -math.log(99))
        self.tied = nn.Linear(12, 20, bias=False)
        self.tied.weight = self.embedding.weight
        drop = torch.linspace(0, 0.1, 3)
        self.drop = [rate.item() for rate in drop]
        self.register_buffer("frequencies", torch.arange(6).float().exp(), persistent=False)
        self.register_buffer("ceiling", self.scale.detach().exp(), persistent=False)
        self.register_buffer("start", self.norm.weight.detach().clone(), persistent=False)
        self.register_buffer("counted", torch.zeros(3))

    def forward(self, x: Any) -> Any:
        x = self.linear(x) + self.embedding(torch.arange(5)) + self.position[0] + self.token[0]
        x = self.recurrent(x)[0] @ self.orthogonal @ self.sparse
        x = torch.cat([x, x], -1) * self.scale + self.frequencies.repeat(2).log() * self.start + self.ceiling.log()
        for layer in self.layers:
            x = self.norm(layer(x)).relu()
        x, _ = self.attention(x, x, x)
        return self.tied(self.vision(x))


def state(module: Any) -> dict[str, bytes]:
    """All tensors of a module, also those that no file holds, as bytes."""
    return {
        name: bytes(tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy())
        for name, tensor in [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    }


def built(seed: int, make: Any = Everything) -> Any:
    torch.manual_seed(seed)
    return make()
