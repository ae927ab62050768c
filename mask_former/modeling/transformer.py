"""Sine positions and the encoder and decoder stacks of DETR (arXiv 2005.12872, appendix A.3), batch first.

Maps are (B, C, h, w); as sequences they are (B, S, C) with S = h * w. Attribute names (`self_attn`,
`multihead_attn`, `linear1`, `norm1`, ...) are names in checkpoints.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def map_to_sequence(features: Tensor) -> Tensor:
    """Return a map (B, C, h, w) as a sequence (B, S, C), row by row."""
    return features.flatten(2).transpose(1, 2)


def sequence_to_map(sequence: Tensor, height: int, width: int) -> Tensor:
    """Return a sequence (B, S, C) as a map (B, C, height, width)."""
    return sequence.transpose(1, 2).unflatten(2, (height, width))


def sine_positions(features: Tensor) -> Tensor:
    """Return the positions (1, S, C) of the map `features` (B, C, h, w), in its dtype, on its device.

    The first half of the channels encodes the row and the second half the column, C / 4 wavelengths each,
    sines on even channels and cosines on odd ones. Sizes seen before are read from a cache: do not write
    into the result.
    """
    _, channels, height, width = features.shape
    # A compiler or tracer must record the computation, for sizes may vary; what it holds is not for others.
    recorded = torch.jit.is_tracing() or torch.compiler.is_compiling() or type(features) is not Tensor
    compute = _sine_positions if recorded else _cached_sine_positions
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
    # A tensor made in inference mode could not take part in training later.
    with torch.inference_mode(False):
        return _sine_positions(channels, height, width, device, dtype)


def _encode_axis(length: int, channels: int, device: torch.device) -> Tensor:
    """Return (length, channels): positions 1 to `length`, scaled to 2 pi, at channels / 2 frequencies."""
    position = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    position = position / (length + 1e-6) * (2 * math.pi)
    exponent = torch.arange(0, channels, 2, dtype=torch.float32, device=device) / channels
    angle = position[:, None] / 10000**exponent
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def check_width(channels: int, num_heads: int, key: str) -> None:
    """Raise ValueError, naming the config key of `channels`, unless attention and positions can have them."""
    if channels <= 0 or channels % 4 or channels % num_heads:
        raise ValueError(
            f"{key} is {channels}; it must be a multiple of 4 (sine positions) and of "
            f"MODEL.MASK_FORMER.NHEADS, which is {num_heads}. Change one of the two."
        )


class LayerOptions(NamedTuple):
    """What the layers of a stack are built from; `normalize_before` puts norms before the sub-layers."""

    channels: int
    num_heads: int
    feedforward_channels: int
    dropout: float
    normalize_before: bool


class _Layer(nn.Module):
    """What encoder and decoder layers share: self-attention, the feed-forward part and the residual rule."""

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
        """Return `states` plus what the sub-layer makes of them, normalised before or after."""
        if self.normalize_before:
            return states + self.dropout(sublayer(norm(states)))
        return norm(states + self.dropout(sublayer(states)))

    def _attend_to_self(self, states: Tensor, positions: Tensor) -> Tensor:
        query = key = states + positions
        # Not asked for its weights, the module runs torch's fused kernel.
        return self.self_attn(query, key, states, need_weights=False)[0]

    def _feed_forward(self, states: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(states))))


def _attention(options: LayerOptions) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(options.channels, options.num_heads, options.dropout, batch_first=True)


class EncoderLayer(_Layer):
    """Self-attention over a map, then a feed-forward part."""

    def forward(self, states: Tensor, positions: Tensor) -> Tensor:
        """Return the next states (B, S, C); `positions` (1, S, C) are added to queries and keys only."""
        states = self._add(states, self.norm1, lambda x: self._attend_to_self(x, positions))
        return self._add(states, self.norm2, self._feed_forward)


class DecoderLayer(_Layer):
    """Attention among queries, attention of queries to a memory, then a feed-forward part."""

    def __init__(self, options: LayerOptions) -> None:
        super().__init__(options)
        self.multihead_attn = _attention(options)
        self.norm3 = nn.LayerNorm(options.channels)

    def forward(self, states: Tensor, query_positions: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return the next states (B, Q, C) from those, (1, Q, C) positions and (B, S, C) keys and values."""

        def attend_to_memory(x: Tensor) -> Tensor:
            return self.multihead_attn(x + query_positions, keys, values, need_weights=False)[0]

        states = self._add(states, self.norm1, lambda x: self._attend_to_self(x, query_positions))
        states = self._add(states, self.norm2, attend_to_memory)
        return self._add(states, self.norm3, self._feed_forward)


class TransformerEncoder(nn.Module):
    """Encoder layers, with a last norm only where the layers normalise before."""

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
    """Decoder layers that start from zeros; one norm is shared by what every layer gives out."""

    def __init__(self, num_layers: int, options: LayerOptions) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(options) for _ in range(num_layers))
        self.norm = nn.LayerNorm(options.channels)
        _initialize(self)

    def forward(self, queries: Tensor, memory: Tensor) -> list[Tensor]:
        """Return the normalised states (B, Q, C) after each layer, the answer last.

        Args:
            queries: (Q, C) learned query embeddings, the positions of the queries in every layer.
            memory: (B, C, h, w) the map they read.
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

    def inspect(self, queries: Tensor, memory: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the result of `forward` and, per layer, the cross-attention (B, heads, Q, h, w)."""
        maps: list[Tensor] = []

        # Watched from outside, so that `forward` need not know of attention weights.
        def watch(attention: nn.MultiheadAttention, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
            weights = attention.forward(*inputs, need_weights=True, average_attn_weights=False)[1]
            assert weights is not None, "torch gives the weights that it is asked for"
            maps.append(weights.unflatten(3, memory.shape[2:]))

        layers = [layer for layer in self.layers if isinstance(layer, DecoderLayer)]
        hooks = [layer.multihead_attn.register_forward_pre_hook(watch) for layer in layers]
        try:
            return self(queries, memory), maps
        finally:
            for hook in hooks:
                hook.remove()


def _initialize(stack: nn.Module) -> None:
    """Draw every matrix of `stack` from Xavier's uniform distribution; vectors keep torch's defaults."""
    for parameter in stack.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
