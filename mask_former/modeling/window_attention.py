"""Self-attention within windows of a map, for Swin (arXiv 2103.14030). N: number of positions in a window."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask_former.modeling.transformer import attention_kernels

# Added to the attention logits of positions that only the cyclic shift brings together. The published models
# were trained with this value; it is finite, so that it is safe in float16 too.
MASKED = -100.0


class BlockOptions(NamedTuple):
    """Options common to all blocks of a backbone."""

    window_size: int
    mlp_ratio: float
    qkv_bias: bool
    qk_scale: float | None
    drop: float
    attn_drop: float


def relative_position_index(window_size: int) -> Tensor:
    """Return the row of the bias table for each pair of positions in a window, (N, N) int64.

    The row encodes the offset of the first position from the second, rows before columns.
    """
    positions = torch.arange(window_size)
    offsets = positions[:, None] - positions[None, :] + window_size - 1  # (w, w), 0..2w-2
    side = 2 * window_size - 1
    index = offsets[:, None, :, None] * side + offsets[None, :, None, :]  # row, column, row', column'
    return index.reshape(window_size**2, window_size**2)


def shift_masks(window_size: int, shift: int) -> Tensor:
    """Return what is added to the attention logits of shifted windows, (4, N, N) float.

    One mask for each kind of window: 0 inside, 1 in the last column, 2 in the last row, 3 in both. In kinds
    1 to 3 the shift joins parts that are not neighbours in the picture.
    """
    wrapped = torch.arange(window_size) >= window_size - shift
    row, column = wrapped[:, None].expand(-1, window_size), wrapped[None, :].expand(window_size, -1)
    parts = torch.stack([torch.zeros_like(row).long(), column.long(), row.long(), 2 * row + column])
    parts = parts.flatten(1)  # (4, N)
    return torch.where(parts[:, :, None] == parts[:, None, :], 0.0, MASKED)


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for each offset of two positions."""

    relative_position_index: Tensor

    def __init__(self, channels: int, num_heads: int, options: BlockOptions) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = options.qk_scale
        self.attn_drop = options.attn_drop
        side = 2 * options.window_size - 1
        self.relative_position_bias_table = nn.Parameter(torch.empty(side**2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        # Persistent, since it is part of the published checkpoints.
        self.register_buffer("relative_position_index", relative_position_index(options.window_size))
        self.qkv = nn.Linear(channels, 3 * channels, bias=options.qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(options.drop)

    def position_bias(self) -> Tensor:
        """Return the bias of each pair of positions, (heads, N, N)."""
        index = self.relative_position_index
        bias = self.relative_position_bias_table[index.flatten()]
        return bias.view(*index.shape, self.num_heads).permute(2, 0, 1)

    def forward(self, windows: Tensor, shift_mask: Tensor | None) -> Tensor:
        """Attend within each window.

        Args:
            windows: (B*n, N, C), the n windows of one image after those of another.
            shift_mask: (n, N, N), added to the logits of every head; None if the windows are not shifted.

        Returns:
            (B*n, N, C).
        """
        count, positions, channels = windows.shape
        qkv = self.qkv(windows).view(count, positions, 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B*n, heads, N, C/heads)
        mask = self.position_bias()[None]
        if shift_mask is not None:
            mask = mask + shift_mask[:, None].to(mask.dtype)  # (n, heads, N, N)
            # Repeating the mask costs less than copying query, key and value to another order.
            mask = mask.repeat(count // shift_mask.shape[0], 1, 1, 1)
        drop = self.attn_drop if self.training else 0.0
        with attention_kernels(self.training, query.device):
            attended = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask.to(query.dtype), dropout_p=drop, scale=self.scale
            )
        return self.proj_drop(self.proj(attended.transpose(1, 2).reshape(count, positions, channels)))
