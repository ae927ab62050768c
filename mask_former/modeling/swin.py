"""Swin Transformer backbone: windowed attention, shifted in every second block (arXiv 2103.14030).

Maps are channels-last, (B, H, W, C), inside the backbone; N is the number of positions in a window. Pictures
may have any size: patches, windows and pairs of pixels are padded with zeros, right and below, and cropped
again. Attribute names are those of the published checkpoints.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from mask_former.modeling.freezing import check_stages
from mask_former.modeling.window_attention import BlockOptions, WindowAttention, shift_masks


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch for whole samples with a given probability."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """Return `branch` (B, ...): in training zero for dropped samples and scaled up for the others."""
        if not self.training or self.probability == 0:
            return branch
        kept = branch.new_empty(branch.shape[0], *(1,) * (branch.ndim - 1)).bernoulli_(1 - self.probability)
        return branch * kept / (1 - self.probability)


class Mlp(nn.Module):
    """Two linear layers with a GELU in between, applied at each position."""

    def __init__(self, channels: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.drop = nn.Dropout(drop)

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(features)))))


class SwinBlock(nn.Module):
    """Window attention and an MLP, each with a norm before it and a residual connection around it."""

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
        """Map (B, H, W, C) to (B, H, W, C); `shift_mask` (n, N, N) is used only if the block is shifted."""
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
    """Halve a map: merge the four pixels of a square to one with twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, ceil(H/2), ceil(W/2), 2C)."""
        _, H, W, _ = features.shape
        features = F.pad(features, (0, 0, 0, W % 2, 0, H % 2))
        # The order in the checkpoints: first column from top to bottom, then second column.
        corners = [features[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class SwinStage(nn.Module):
    """The blocks of one resolution, every second one shifted, and the downsampling to the next."""

    shift_masks: Tensor

    def __init__(
        self,
        channels: int,
        num_heads: int,
        drop_paths: Sequence[float],
        options: BlockOptions,
        downsample: bool,
    ) -> None:
        super().__init__()
        self.window_size = options.window_size
        shift = options.window_size // 2
        self.register_buffer("shift_masks", shift_masks(self.window_size, shift), persistent=False)
        self.blocks = nn.ModuleList(
            SwinBlock(channels, num_heads, shift if number % 2 else 0, drop_path, options)
            for number, drop_path in enumerate(drop_paths)
        )
        self.downsample = PatchMerging(channels) if downsample else None

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map of this stage, (B, H, W, C), and the input of the next stage, half as large."""
        _, H, W, _ = features.shape
        side = self.window_size
        masks = self.grid_masks((H + side - 1) // side, (W + side - 1) // side)
        for block in self.blocks:
            features = block(features, masks)
        return features, features if self.downsample is None else self.downsample(features)

    def grid_masks(self, rows: int, columns: int) -> Tensor:
        """Return the shift masks of a grid of windows, (rows * columns, N, N)."""
        device = self.shift_masks.device
        last_row = torch.arange(rows, device=device) == rows - 1
        last_column = torch.arange(columns, device=device) == columns - 1
        kind = 2 * last_row[:, None] + last_column[None, :]
        return self.shift_masks[kind.flatten()]


class PatchEmbed(nn.Module):
    """Split the picture into patches and embed each."""

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
    """Swin backbone: maps `res2` (1/4 of the picture), `res3`, `res4`, `res5` (1/32).

    Only what `out_features` need is built, so that every parameter gets a gradient.
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
        frozen_stages: int = -1,
    ) -> None:
        """See MODEL.SWIN in config.py for the meaning of the arguments."""
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
            stage = SwinStage(channels, num_heads[i], drop_paths[i].tolist(), options, downsample=i < last)
            self.layers.append(stage)
            if names[i] in self._out_features:
                self.add_module(f"norm{i}", nn.LayerNorm(channels))
        self.apply(_initialize)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(frozen_stages < 0)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Return the constructor's arguments, which are the keys of MODEL.SWIN in lower case."""
        keys = set(cfg.MODEL.SWIN) - {"USE_CHECKPOINT"}  # see SOLVER.RECOMPUTE_ACTIVATIONS
        return {"in_channels": input_shape.channels} | {
            key.lower(): getattr(cfg.MODEL.SWIN, key) for key in keys
        }

    @property
    def size_divisibility(self) -> int:
        """Pictures of a multiple of this many pixels need no padding: 32 in all published models."""
        return self._size_divisibility

    def train(self, mode: bool = True) -> "D2SwinTransformer":
        """Set the mode of all modules but the frozen ones, which stay in eval mode. Return self."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the maps of `image` (B, 3, H, W): name -> (B, C_s, ceil(H/s), ceil(W/s))."""
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

    def layer_numbers(self) -> dict[str, int]:
        """Return the layer of each parameter, the first 0: what layer-wise decay counts."""
        numbers, count = {}, 0
        for name, _ in self.named_parameters():
            if name.endswith(
                "norm1.weight"
            ):  # the first of a block; what leads to the next stage goes with it
                count += 1
            numbers[name] = count + 1 if name.startswith("norm") else count
        return numbers

    def pretrained_parts(self, stages: int | None) -> list[nn.Module | nn.Parameter]:
        """Return what is pretrained, of all stages or the first; the output norms are not."""
        if stages is not None:
            check_stages(stages, len(self.layers))
        parts: list[nn.Module | nn.Parameter] = [self.patch_embed, self.pos_drop, *self.layers[:stages]]
        return parts if self.absolute_pos_embed is None else [*parts, self.absolute_pos_embed]

    def _frozen_modules(self) -> list[nn.Module]:
        """Modules without training and dropout; output norms are not part of the pre-trained stages."""
        if self.frozen_stages < 0:
            return []
        return [self.patch_embed, self.pos_drop, *self.layers[: self.frozen_stages]]


def _initialize(module: nn.Module) -> None:
    """Initialize linear layers as in the paper; norms and the patch embedding keep torch's defaults."""
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
                f"of its stage: change it or MODEL.SWIN.EMBED_DIM ({embed_dim})."
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
