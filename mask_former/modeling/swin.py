"""Swin Transformer as a backbone: attention in windows that shift from block to block (arXiv 2103.14030).

Maps are channels-last, (B, H, W, C), until they leave the backbone. N is the number of positions in a
window. Any picture size will do: what does not fill a patch, a window or a pair of pixels is padded with
zeros, right and below, and cut off again. Attribute names are those of the published checkpoints.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Added to the attention logit of two positions that only the cyclic shift made neighbours. The published
# models were trained with this number; being finite, it is safe in float16 as well.
APART = -100.0


class BlockOptions(NamedTuple):
    """What all blocks of a backbone share."""

    window_size: int
    mlp_ratio: float
    qkv_bias: bool
    qk_scale: float | None
    drop: float
    attn_drop: float


def relative_position_index(window_size: int) -> Tensor:
    """Return for each pair of positions in a window the row of the bias table, (N, N) int64.

    The row stands for the offset between the two, first position minus second, rows before columns.
    """
    positions = torch.arange(window_size)
    offsets = positions[:, None] - positions[None, :] + window_size - 1  # (w, w), 0..2w-2
    side = 2 * window_size - 1
    index = offsets[:, None, :, None] * side + offsets[None, :, None, :]  # row, column, row', column'
    return index.reshape(window_size**2, window_size**2)


def _build_shift_masks(window_size: int, shift: int, device: torch.device) -> Tensor:
    wrapped = torch.arange(window_size, device=device) >= window_size - shift
    row, column = wrapped[:, None], wrapped[None, :]
    nowhere = torch.zeros_like(row & column)
    kinds = (nowhere, column | nowhere, row | nowhere, row * 2 + column)
    part = torch.stack([kind.long() for kind in kinds]).flatten(1)  # (4, N)
    return torch.where(part[:, :, None] == part[:, None, :], 0.0, APART)


@lru_cache(maxsize=16)
def _cached_shift_masks(window_size: int, shift: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a tensor born in inference mode could not be trained with later
        return _build_shift_masks(window_size, shift, device)


def shift_masks(window_size: int, shift: int, device: torch.device) -> Tensor:
    """Return what a shifted window adds to its attention logits, (4, N, N) float.

    There are four kinds of windows whatever the size of the map: 0 inside, 1 in the last column, 2 in the
    last row, 3 in both. In 1 to 3 the shift joins parts that are apart in the picture.
    """
    if torch.compiler.is_compiling():  # a tracer's stand-in for a tensor must not outlive the tracing
        return _build_shift_masks(window_size, shift, device)
    return _cached_shift_masks(window_size, shift, device)


class DropPath(nn.Module):
    """Stochastic depth: leave a branch out for whole samples, with the probability given."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """Return `branch` (B, ...), zero in dropped samples and scaled up in the others; as it is in eval."""
        if not self.training or self.probability == 0:
            return branch
        kept = branch.new_empty(branch.shape[0], *(1,) * (branch.ndim - 1)).bernoulli_(1 - self.probability)
        return branch * kept / (1 - self.probability)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, at each position."""

    def __init__(self, channels: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.drop = nn.Dropout(drop)

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(features)))))


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for each offset between two positions."""

    relative_position_index: Tensor

    def __init__(self, channels: int, num_heads: int, options: BlockOptions) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = options.qk_scale
        self.attn_drop = options.attn_drop
        side = 2 * options.window_size - 1
        self.relative_position_bias_table = nn.Parameter(torch.empty(side**2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        # Persistent, because published checkpoints hold it.
        self.register_buffer("relative_position_index", relative_position_index(options.window_size))
        self.qkv = nn.Linear(channels, 3 * channels, bias=options.qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(options.drop)

    def position_bias(self) -> Tensor:
        """Return what the offset of two positions adds to their attention logit, (heads, N, N)."""
        index = self.relative_position_index
        bias = self.relative_position_bias_table[index.flatten()]
        return bias.view(*index.shape, self.num_heads).permute(2, 0, 1)

    def forward(self, windows: Tensor, shift_mask: Tensor | None) -> Tensor:
        """Attend within each window.

        Args:
            windows: (B*n, N, C), the n windows of an image in succession.
            shift_mask: (n, N, N), added to the logits of every head; None for windows that are not shifted.

        Returns:
            (B*n, N, C).
        """
        count, positions, channels = windows.shape
        qkv = self.qkv(windows).view(count, positions, 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B*n, heads, N, C/heads)
        mask = self.position_bias()[None]
        if shift_mask is not None:
            mask = mask + shift_mask[:, None].to(mask.dtype)  # (n, heads, N, N)
            # Copies of the mask cost less than copies of query, key and value in another order would.
            mask = mask.repeat(count // shift_mask.shape[0], 1, 1, 1)
        drop = self.attn_drop if self.training else 0.0
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask.to(query.dtype), dropout_p=drop, scale=self.scale
        )
        return self.proj_drop(self.proj(attended.transpose(1, 2).reshape(count, positions, channels)))


class SwinBlock(nn.Module):
    """Window attention and an MLP, each normalised before and added to what came in."""

    def __init__(
        self, channels: int, num_heads: int, shift: int, drop_path: float, options: BlockOptions
    ) -> None:
        super().__init__()
        self.window_size = options.window_size
        self.shift = shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, num_heads, options)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * options.mlp_ratio), options.drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, features: Tensor, shift_mask: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C); `shift_mask` (n, N, N) is read only if this block shifts."""
        features = features + self.drop_path(self._attend(self.norm1(features), shift_mask))
        return features + self.drop_path(self.mlp(self.norm2(features)))

    def _attend(self, features: Tensor, shift_mask: Tensor) -> Tensor:
        B, H, W, C = features.shape
        side = self.window_size
        # Not -(-H // side): exporters translate the quotient of a negative size wrongly.
        rows, columns = (H + side - 1) // side, (W + side - 1) // side
        padded = F.pad(features, (0, 0, 0, columns * side - W, 0, rows * side - H))
        if self.shift:
            padded = padded.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = padded.view(B, rows, side, columns, side, C).transpose(2, 3)  # rows, columns, side, side
        attended = self.attn(
            windows.reshape(B * rows * columns, side**2, C), shift_mask if self.shift else None
        )
        padded = attended.view(B, rows, columns, side, side, C).transpose(2, 3)
        padded = padded.reshape(B, rows * side, columns * side, C)
        if self.shift:
            padded = padded.roll((self.shift, self.shift), dims=(1, 2))
        return padded[:, :H, :W]


class PatchMerging(nn.Module):
    """Halve a map: the four pixels of a square become one, with twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, ceil(H/2), ceil(W/2), 2C)."""
        _, H, W, _ = features.shape
        features = F.pad(features, (0, 0, 0, W % 2, 0, H % 2))
        # The order of the checkpoints: down the first column, then down the second.
        corners = [features[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class SwinStage(nn.Module):
    """The blocks of one resolution, every second one shifted, and the way down to the next."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        drop_paths: Sequence[float],
        options: BlockOptions,
        downsample: bool,
        use_checkpoint: bool,
    ) -> None:
        super().__init__()
        self.window_size = options.window_size
        self.shift = options.window_size // 2
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(
            SwinBlock(channels, num_heads, self.shift if number % 2 else 0, drop_path, options)
            for number, drop_path in enumerate(drop_paths)
        )
        self.downsample = PatchMerging(channels) if downsample else None

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map of this stage, (B, H, W, C), and what the next stage reads, half as large."""
        _, H, W, _ = features.shape
        side = self.window_size
        shift_mask = self._shift_mask((H + side - 1) // side, (W + side - 1) // side, features.device)
        for block in self.blocks:
            if self.use_checkpoint and torch.is_grad_enabled():
                features = checkpoint(block, features, shift_mask, use_reentrant=False)
            else:
                features = block(features, shift_mask)
        return features, features if self.downsample is None else self.downsample(features)

    def _shift_mask(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """Return the masks of a grid of windows, (rows * columns, N, N)."""
        last_row = torch.arange(rows, device=device) == rows - 1
        last_column = torch.arange(columns, device=device) == columns - 1
        kind = 2 * last_row[:, None] + last_column[None, :]
        return shift_masks(self.window_size, self.shift, device)[kind.flatten()]


class PatchEmbed(nn.Module):
    """Cut the picture into patches and embed each."""

    def __init__(self, in_channels: int, channels: int, patch_size: int, normalize: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, channels, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(channels) if normalize else None

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, ceil(H/p), ceil(W/p), C)."""
        height, width = image.shape[-2:]
        image = F.pad(image, (0, -width % self.patch_size, 0, -height % self.patch_size))
        patches = self.proj(image).permute(0, 2, 3, 1)
        return patches if self.norm is None else self.norm(patches)


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(Backbone):
    """Swin backbone: a picture in, maps `res2` (1/4), `res3`, `res4`, `res5` (1/32) out.

    Only what the wanted maps need is built, so that every parameter gets a gradient.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int = 3,
        pretrain_img_size: int = 224,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.3,
        ape: bool = False,
        patch_norm: bool = True,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        use_checkpoint: bool = False,
        frozen_stages: int = -1,
    ) -> None:
        """See MODEL.SWIN in config.py for what each argument means."""
        super().__init__()
        names = [f"res{number + 2}" for number in range(len(depths))]
        _check_arguments(names, embed_dim, depths, num_heads, out_features, frozen_stages)
        self.frozen_stages = frozen_stages
        self._out_features = [name for name in names if name in out_features]
        self._out_feature_strides = {name: patch_size * 2**i for i, name in enumerate(names)}
        self._out_feature_channels = {name: embed_dim * 2**i for i, name in enumerate(names)}
        self._size_divisibility = patch_size * 2 ** (len(depths) - 1)

        self.patch_embed = PatchEmbed(in_channels, embed_dim, patch_size, patch_norm)
        self.absolute_pos_embed = None
        if ape:
            side = pretrain_img_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, embed_dim, side, side))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)

        options = BlockOptions(window_size, mlp_ratio, qkv_bias, qk_scale, drop_rate, attn_drop_rate)
        drop_paths = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))
        last = names.index(self._out_features[-1])
        self.layers = nn.ModuleList()
        for i in range(last + 1):
            channels = embed_dim * 2**i
            stage_drop_paths = drop_paths[i].tolist()
            self.layers.append(
                SwinStage(channels, num_heads[i], stage_drop_paths, options, i < last, use_checkpoint)
            )
            if names[i] in self._out_features:
                self.add_module(f"norm{i}", nn.LayerNorm(channels))
        self.apply(_initialize)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(frozen_stages < 0)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read MODEL.SWIN."""
        swin = cfg.MODEL.SWIN
        return {
            "in_channels": input_shape.channels,
            "pretrain_img_size": swin.PRETRAIN_IMG_SIZE,
            "patch_size": swin.PATCH_SIZE,
            "embed_dim": swin.EMBED_DIM,
            "depths": swin.DEPTHS,
            "num_heads": swin.NUM_HEADS,
            "window_size": swin.WINDOW_SIZE,
            "mlp_ratio": swin.MLP_RATIO,
            "qkv_bias": swin.QKV_BIAS,
            "qk_scale": swin.QK_SCALE,
            "drop_rate": swin.DROP_RATE,
            "attn_drop_rate": swin.ATTN_DROP_RATE,
            "drop_path_rate": swin.DROP_PATH_RATE,
            "ape": swin.APE,
            "patch_norm": swin.PATCH_NORM,
            "out_features": swin.OUT_FEATURES,
            "use_checkpoint": swin.USE_CHECKPOINT,
            "frozen_stages": swin.FROZEN_STAGES,
        }

    @property
    def size_divisibility(self) -> int:
        """A multiple of this many pixels needs no padding between the stages: 32 in all published models."""
        return self._size_divisibility

    def train(self, mode: bool = True) -> "D2SwinTransformer":
        """Set the mode of all but the frozen stages, which stay in eval. Returns self."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the wanted maps of `image` (B, 3, H, W): name -> (B, C_s, ceil(H/s), ceil(W/s))."""
        features = self.patch_embed(image)
        if self.absolute_pos_embed is not None:
            size = features.shape[1:3]
            positions = F.interpolate(self.absolute_pos_embed, size=size, mode="bicubic", align_corners=False)
            features = features + positions.permute(0, 2, 3, 1)
        features = self.pos_drop(features)
        maps = {}
        for i, stage in enumerate(self.layers):
            stage_map, features = stage(features)
            if f"res{i + 2}" in self._out_features:
                normalized = self.get_submodule(f"norm{i}")(stage_map)
                maps[f"res{i + 2}"] = normalized.permute(0, 3, 1, 2).contiguous()
        return maps

    def _frozen_modules(self) -> list[nn.Module]:
        """Modules that neither learn nor drop. The output norms are no part of the pre-trained stages."""
        if self.frozen_stages < 0:
            return []
        return [self.patch_embed, self.pos_drop, *self.layers[: self.frozen_stages]]


def _initialize(module: nn.Module) -> None:
    """Initialise linear layers as the paper's models were; norms and the patch embedding keep torch's way."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_arguments(
    names: Sequence[str],
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    out_features: Sequence[str],
    frozen_stages: int,
) -> None:
    if len(depths) != len(num_heads):
        raise ValueError(
            f"MODEL.SWIN.DEPTHS {list(depths)} and MODEL.SWIN.NUM_HEADS {list(num_heads)} "
            "differ in length: give one number a stage in both."
        )
    for i, heads in enumerate(num_heads):
        if embed_dim * 2**i % heads:
            raise ValueError(
                f"MODEL.SWIN.NUM_HEADS[{i}] = {heads} does not divide the {embed_dim * 2**i} channels "
                f"of that stage: change it or MODEL.SWIN.EMBED_DIM ({embed_dim})."
            )
    unknown = [name for name in out_features if name not in names]
    if unknown or not out_features:
        raise ValueError(
            f"MODEL.SWIN.OUT_FEATURES is {list(out_features)}: name at least one map, out of {list(names)}."
        )
    if not -1 <= frozen_stages <= len(depths):
        raise ValueError(
            f"MODEL.SWIN.FROZEN_STAGES is {frozen_stages}: expected -1 (nothing frozen) to {len(depths)} "
            "(the patch embedding and all stages)."
        )
