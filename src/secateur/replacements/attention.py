"""``nn.MultiheadAttention`` whose outer width, head width and value width are three numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .table import replaces


@replaces(nn.MultiheadAttention)
class DecoupledAttention(nn.MultiheadAttention):
    """Multi-head attention with ``num_heads`` heads of ``head_dim`` for queries and keys.

    Attributes:
        embed_dim, kdim, vdim: widths of the query, key and value that come in.
        num_heads, head_dim: of queries and keys.
        v_head_dim: width of one head of values.
        scale: of the scores; it stays as it was when ``head_dim`` shrinks.

    The width that goes out is ``out_proj.out_features``.  torch's fused encoder layer would read
    one width for all four, and declines a layer that says ``_qkv_same_embed_dim`` is False.
    """

    if TYPE_CHECKING:  # TorchScript reads annotations of a class
        v_head_dim: int
        scale: float

    @staticmethod
    def extra(module: nn.MultiheadAttention) -> dict[str, Any]:
        return {
            "v_head_dim": module.head_dim,
            "scale": module.head_dim**-0.5,
            "_qkv_same_embed_dim": False,
        }

    @staticmethod
    def fits(module: DecoupledAttention) -> bool:
        packed = module.in_proj_weight is not None
        if module.out_proj.weight is None:  # in a block that was dropped
            return True
        return (
            module.head_dim == module.v_head_dim
            and module.num_heads * module.head_dim == module.embed_dim
            and module.out_proj.weight.shape == (module.embed_dim, module.embed_dim)
            and (not packed or module.kdim == module.vdim == module.embed_dim)
            and math.isclose(module.scale, module.head_dim**-0.5)
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output and the weights, as the original does; see there for the arguments."""
        batched = query.dim() == 3
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, which is missing")
        q, k, v = self._project(query, key, value)
        if not batched:
            q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        batch = q.size(0)
        bias_k, bias_v = self.bias_k, self.bias_v
        if bias_k is not None and bias_v is not None:
            k = torch.cat([k, bias_k.expand(batch, -1, -1)], 1)
            v = torch.cat([v, bias_v.expand(batch, -1, -1)], 1)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        hint = is_causal and key_padding_mask is None and not need_weights
        mask = None if hint else self._mask(attn_mask, key_padding_mask, q, k.size(1))
        q = q.view(batch, q.size(1), self.num_heads, self.head_dim).transpose(1, 2)
        k = k.view(batch, k.size(1), self.num_heads, self.head_dim).transpose(1, 2)
        v = v.view(batch, v.size(1), self.num_heads, self.v_head_dim).transpose(1, 2)
        weights: Tensor | None = None
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = torch.matmul(q * self.scale, k.transpose(2, 3))
            if mask is not None:
                scores = scores + mask
            weights = F.dropout(scores.softmax(-1), dropout)
            x = torch.matmul(weights, v)
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            x = F.scaled_dot_product_attention(q, k, v, mask, dropout, hint, scale=self.scale)
        x = F.linear(x.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if not batched:
            return x.squeeze(0), weights
        return x if self.batch_first else x.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner, v_inner = self.num_heads * self.head_dim, self.num_heads * self.v_head_dim
        query = query.view(query.shape[:-1] + (self.embed_dim,))
        key = key.view(key.shape[:-1] + (self.kdim,))
        value = value.view(value.shape[:-1] + (self.vdim,))
        if self.in_proj_weight is not None:
            w_q, w_k, w_v = self.in_proj_weight.split([inner, inner, v_inner])
        else:
            w_q, w_k, w_v = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        b_q: Tensor | None = None
        b_k: Tensor | None = None
        b_v: Tensor | None = None
        if self.in_proj_bias is not None:
            b_q, b_k, b_v = self.in_proj_bias.split([inner, inner, v_inner])
        return F.linear(query, w_q, b_q), F.linear(key, w_k, b_k), F.linear(value, w_v, b_v)

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, keys: int
    ) -> Tensor | None:
        """Return what is added to the scores (batch, heads, queries, keys), or None."""
        mask: Tensor | None = None
        if attn_mask is not None:
            mask = _additive(attn_mask, q)
            if mask.dim() == 3 and mask.size(0) > 1:
                mask = mask.view(q.size(0), self.num_heads, mask.size(1), mask.size(2))
            mask = F.pad(mask, (0, keys - mask.size(-1)))
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, q)
            padding = F.pad(padding, (0, keys - padding.size(-1))).unsqueeze(1).unsqueeze(1)
            mask = padding if mask is None else mask + padding
        return mask


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """Return −∞ where a bool mask is True (not attended), and a float mask as it is."""
    if mask.dtype == torch.bool:
        added = torch.zeros(mask.shape, dtype=like.dtype, device=like.device)
        return added.masked_fill(mask, float("-inf"))
    return mask
