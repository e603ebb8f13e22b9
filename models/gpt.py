"""A GPT-style transformer for next-token prediction, small enough for a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["gpt_tiny"]


def linear(inputs: int, outputs: int, std: float = 0.02) -> nn.Linear:
    """Gives a fully connected layer with GPT-2's weights: normal(0, std), bias 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


class Embedding(nn.Module):
    """Token plus position: what a token is and where it stands."""

    def __init__(self, vocab: int, context: int, width: int, dropout: float) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab, width)
        self.position = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, C); ValueError where T is more than the context."""
        length, context = tokens.shape[1], self.position.num_embeddings
        if length > context:
            raise ValueError(f"{length} tokens exceed the model's context of {context}: cut them or raise `context`")
        places = torch.arange(length, device=tokens.device)  # (T,)
        x: Tensor = self.dropout(self.token(tokens) + self.position(places))  # (B, T, C) + (T, C) -> (B, T, C)
        return x


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a token sees itself and what came before it."""

    def __init__(self, width: int, heads: int, dropout: float, residual_std: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width)
        self.out = linear(width, width, residual_std)
        self.attention_dropout = dropout
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        B, T, C = x.shape
        qkv: Tensor = self.qkv(x)  # (B, T, 3C)
        q, k, v = qkv.view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)  # each (B, heads, T, C/heads)
        dropout = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)  # (B, heads, T, C/heads)
        y = y.transpose(1, 2).reshape(B, T, C)
        out: Tensor = self.dropout(self.out(y))  # (B, T, C)
        return out


class Layer(nn.Module):
    """One pre-norm transformer layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, dropout: float, residual_std: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, dropout, residual_std)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            linear(width, 4 * width), nn.GELU(), linear(4 * width, width, residual_std), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


def gpt_tiny(
    vocab: int = 65, context: int = 64, width: int = 64, heads: int = 4, layers: int = 4, dropout: float = 0.1
) -> Iterator[nn.Module]:
    """Yields the `layers + 2` blocks of a GPT: embeddings, each transformer layer, norm + linear head.

    The head has its own weights: GPT-2 ties them to the token embedding, but those live on another device.

    Args:
        vocab: Number of different tokens.
        context: Tokens per sequence, at most.
        width: Numbers per token (C).
        heads: Attention heads; must divide `width`.
        layers: Transformer layers.
        dropout: Share that training drops from embeddings, attention weights and both residual branches.

    Raises:
        ValueError: `heads` does not divide `width`.

    Shapes: (B, T) int64 with T <= context -> (B, T, vocab) float32 logits.
    Source: GPT-2 and nanoGPT; residual projections start with std 0.02 / sqrt(2 * layers).
    """
    if width % heads:
        raise ValueError(f"width {width} cannot be cut into {heads} equal heads: give `heads` that divide `width`")
    yield Embedding(vocab, context, width, dropout)  # (B, T, C)
    for _ in range(layers):
        yield Layer(width, heads, dropout, residual_std=0.02 / math.sqrt(2 * layers))  # (B, T, C)
    yield nn.Sequential(nn.LayerNorm(width), linear(width, vocab))  # (B, T, vocab)
