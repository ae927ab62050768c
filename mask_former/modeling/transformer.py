"""Sine positions and the encoder and decoder of DETR (arXiv 2005.12872, appendix A.3), batch first.

Maps are (B, C, h, w); as sequences they are (B, S, C) with S = h * w. Attribute names (`self_attn`,
`multihead_attn`, `linear1`, `norm1`, ...) are those of published checkpoints.
"""

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def map_to_sequence(features: Tensor) -> Tensor:
    """Flatten a map (B, C, h, w), row by row, to a sequence (B, S, C)."""
    return features.flatten(2).transpose(1, 2)


def sequence_to_map(sequence: Tensor, height: int, width: int) -> Tensor:
    """Reshape a sequence (B, S, C) to a map (B, C, height, width)."""
    return sequence.transpose(1, 2).unflatten(2, (height, width))


def sine_positions(features: Tensor) -> Tensor:
    """Return the sine position encoding (1, S, C) of the map `features` (B, C, h, w), in its dtype.

    The first half of the channels encodes the row and the second half the column, with C / 4 wavelengths
    each, sines on even channels and cosines on odd ones. The result is cached: do not modify it in place.
    """
    _, channels, height, width = features.shape
    # Tracers must record the computation, since sizes may vary, and their tensors must not enter the cache.
    is_traced = torch.jit.is_tracing() or torch.compiler.is_compiling() or type(features) is not Tensor
    compute = _sine_positions if is_traced else _cached_sine_positions
    return compute(channels, height, width, features.device, features.dtype)


def _sine_positions(
    channels: int, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    rows = _encode_axis(height, channels // 2, device)[:, None].expand(-1, width, -1)
    columns = _encode_axis(width, channels // 2, device)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)[None].to(dtype)


@functools.lru_cache(maxsize=64)
def _cached_sine_positions(
    channels: int, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    # A tensor created in inference mode could not be used in training later.
    with torch.inference_mode(False):
        return _sine_positions(channels, height, width, device, dtype)


def _encode_axis(length: int, channels: int, device: torch.device) -> Tensor:
    """Encode positions 1 to `length`, scaled to 2 pi, at channels / 2 frequencies: (length, channels)."""
    position = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    position = position / (length + 1e-6) * (2 * math.pi)
    exponent = torch.arange(0, channels, 2, dtype=torch.float32, device=device) / channels
    angle = position[:, None] / 10000**exponent
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def check_width(channels: int, num_heads: int, key: str) -> None:
    """Raise ValueError, naming `key`, if `channels` do not suit the attention heads and sine positions."""
    if channels <= 0 or channels % 4 or channels % num_heads:
        raise ValueError(
            f"{key} is {channels}; it must be a multiple of 4 (sine positions) and of "
            f"MODEL.MASK_FORMER.NHEADS, which is {num_heads}. Change one of the two."
        )


def attention_kernels(training: bool, device: torch.device) -> AbstractContextManager[None]:
    """Return a context that selects the kernels of scaled dot-product attention.

    In training on CPUs it is the plain formula: the fused kernel recomputes the attention weights for the
    gradient with an error of 6e-8 times the logit, which from logits of about 30 on exceeds the true
    gradient of queries and keys. An optimizer that scales gradients, such as AdamW, amplifies that noise.
    """
    return sdpa_kernel(SDPBackend.MATH) if training and device.type == "cpu" else nullcontext()


class LayerOptions(NamedTuple):
    """Sizes of a layer; `normalize_before` puts norms before the sub-layers instead of after."""

    channels: int
    num_heads: int
    feedforward_channels: int
    dropout: float
    normalize_before: bool


class _Layer(nn.Module):
    """Base of encoder and decoder layers: self-attention, feed-forward network and residual rule."""

    def __init__(self, options: LayerOptions) -> None:
        super().__init__()
        channels = options.channels
        self.self_attn = _attention(options)
        self.linear1 = nn.Linear(channels, options.feedforward_channels)
        self.linear2 = nn.Linear(options.feedforward_channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(options.dropout)
        self.normalize_before = options.normalize_before

    def _add(self, states: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Add the output of `sublayer` to `states`, with the norm before the sub-layer or after the sum."""
        if self.normalize_before:
            return states + self.dropout(sublayer(norm(states)))
        return norm(states + self.dropout(sublayer(states)))

    def _attend_to_self(self, states: Tensor, positions: Tensor) -> Tensor:
        query = key = states + positions
        return _attend(self.self_attn, query, key, states)

    def _feed_forward(self, states: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(states))))


def _attention(options: LayerOptions) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(options.channels, options.num_heads, options.dropout, batch_first=True)


def _attend(attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with attention_kernels(attention.training, query.device):
        # With need_weights, the module would not use scaled_dot_product_attention.
        return attention(query, key, value, need_weights=False)[0]


class EncoderLayer(_Layer):
    """Self-attention over a map, then a feed-forward network."""

    def forward(self, states: Tensor, positions: Tensor) -> Tensor:
        """Return the updated states (B, S, C); `positions` (1, S, C) are added to queries and keys only."""
        states = self._add(states, self.norm1, lambda x: self._attend_to_self(x, positions))
        return self._add(states, self.norm2, self._feed_forward)


class DecoderLayer(_Layer):
    """Self-attention of the queries, cross-attention to a memory, then a feed-forward network."""

    def __init__(self, options: LayerOptions) -> None:
        super().__init__(options)
        self.multihead_attn = _attention(options)
        self.norm3 = nn.LayerNorm(options.channels)

    def forward(self, states: Tensor, query_positions: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return the updated states (B, Q, C), given query positions (1, Q, C), keys and values (B, S, C)."""

        states = self._add(states, self.norm1, lambda x: self._attend_to_self(x, query_positions))
        states = self._add(
            states, self.norm2, lambda x: _attend(self.multihead_attn, x + query_positions, keys, values)
        )
        return self._add(states, self.norm3, self._feed_forward)


class TransformerEncoder(nn.Module):
    """Encoder layers, followed by a norm if the layers normalise before their sub-layers."""

    def __init__(self, num_layers: int, options: LayerOptions) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(options) for _ in range(num_layers))
        self.norm = nn.LayerNorm(options.channels) if options.normalize_before else nn.Identity()
        _initialize(self)

    def forward(self, features: Tensor) -> Tensor:
        """Return the encoded map (B, C, h, w) of the map `features` (B, C, h, w)."""
        positions = sine_positions(features)
        states = map_to_sequence(features)
        for layer in self.layers:
            states = layer(states, positions)
        return sequence_to_map(self.norm(states), features.shape[2], features.shape[3])


class TransformerDecoder(nn.Module):
    """Decoder layers, applied to states that start as zeros; one norm is shared by all outputs."""

    def __init__(self, num_layers: int, options: LayerOptions) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(options) for _ in range(num_layers))
        self.norm = nn.LayerNorm(options.channels)
        _initialize(self)

    def forward(self, queries: Tensor, memory: Tensor) -> list[Tensor]:
        """Return the normalised states (B, Q, C) after each layer, the last layer's last.

        Args:
            queries: (Q, C) learned query embeddings, used as query positions in every layer.
            memory: (B, C, h, w) the map that the queries attend to.
        """
        values = map_to_sequence(memory)
        keys = values + sine_positions(memory)
        query_positions = queries[None]
        states = torch.zeros_like(query_positions).expand(memory.shape[0], -1, -1)
        outputs = []
        for layer in self.layers:
            states = layer(states, query_positions, keys, values)
            outputs.append(self.norm(states))
        return outputs


def _initialize(stack: nn.Module) -> None:
    """Initialize all matrices from Xavier's uniform distribution; vectors keep torch's defaults."""
    for parameter in stack.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
