"""Backbones of timm, hierarchical or plain, as maps `res2` (1/4 of the picture) to `res5` (1/32)."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from mask_former.modeling.freezing import check_stages
from mask_former.modeling.timm_nets import (
    STRIDE,
    checked_name,
    create_net,
    in_order,
    library,
    modules_of,
    probe_net,
    stage_ends,
)

LEVELS = {2: "res2", 3: "res3", 4: "res4", 5: "res5"}  # log2 of the stride -> name


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalise each pixel."""
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TimmBackbone(Backbone):
    """A net of timm, its parameters under timm's names in `net`, cut behind the last map that is needed.

    Strides that the net lacks are made from its nearest map, as in ViTDet's simple feature pyramid (arXiv
    2203.16527). Maps at other strides than powers of two (patches of 14 pixels) are resized.
    """

    def __init__(
        self,
        name: str,
        *,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        out_features: Sequence[str] = tuple(LEVELS.values()),
    ) -> None:
        """Build the net with random weights.

        Args:
            name: as timm has it, with or without the tag of its weights.
            in_channels: of the picture.
            drop_path_rate: 0 for nets without stochastic depth.
            out_features: the maps to give; only what they need is built.
        """
        super().__init__()
        if not out_features or not set(out_features) <= set(LEVELS.values()):
            raise ValueError(
                f"MODEL.TIMM.OUT_FEATURES is {list(out_features)}: expected some of res2 to res5."
            )
        options = {"in_chans": in_channels} | ({"drop_path_rate": drop_path_rate} if drop_path_rate else {})
        self.multiple, found = probe_net(name, options)
        net = create_net(name, options)
        self.record: dict[str, Any] = net.pretrained_cfg
        # What a file of the whole net holds, in its order.
        self.file_shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        self._out_features = [level for level in LEVELS.values() if level in out_features]
        self._out_feature_strides = {level: 2**power for power, level in LEVELS.items()}

        # Level -> index, stride and channels of the net's last map there.
        levels = {round(math.log2(stride)): (index, stride, c) for index, (stride, c) in enumerate(found)}
        sources = {power: _nearest(power, list(levels)) for power in LEVELS if LEVELS[power] in out_features}
        taken = sorted(set(sources.values()))
        is_plain = len({stride for stride, _ in found}) == 1
        # Of plain transformers; the norm of others belongs to the classifier.
        self.final_norm = is_plain and isinstance(getattr(net, "norm", None), nn.Module)
        self.indices = net.prune_intermediate_layers(
            [levels[power][0] for power in taken], prune_norm=not self.final_norm, prune_head=True
        )
        self.net = net
        self.stage_ends = stage_ends(net, found, max(self.indices))
        self.strides = {power: levels[power][1] for power in taken}
        is_normalized = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in net.modules()) or (
            self.final_norm and any(True for _ in net.norm.parameters())
        )
        self.norms, self.pyramid = nn.ModuleDict(), nn.ModuleDict()
        self.sources = {}
        self._out_feature_channels = {}
        for power, source in sources.items():
            channels = levels[source][2]
            if not is_normalized and LEVELS[source] not in self.norms:
                self.norms[LEVELS[source]] = ChannelNorm(channels)
            self.sources[LEVELS[power]] = source
            if power != source:
                self.pyramid[LEVELS[power]], channels = _scaled(channels, source - power)
            self._out_feature_channels[LEVELS[power]] = channels

    @property
    def size_divisibility(self) -> int:
        """Pictures of a multiple of this many pixels give maps of exact strides."""
        return STRIDE

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the maps of `image` (B, 3, H, W): name -> (B, C_s, ceil(H/s), ceil(W/s))."""
        size = image.shape[-2:]
        whole = [math.ceil(side / STRIDE) * STRIDE for side in size]
        padding = [side + -side % self.multiple - given for side, given in zip(whole, size, strict=True)]
        if any(padding):
            image = F.pad(image, (0, padding[1], 0, padding[0]))
        features = self.net.forward_intermediates(
            image, indices=self.indices, norm=self.final_norm, intermediates_only=True
        )
        own = {
            power: self._finished(power, features_at, whole)
            for power, features_at in zip(self.strides, features, strict=True)
        }
        maps = {}
        for level in self._out_features:
            value = own[self.sources[level]]
            value = self.pyramid[level](value) if level in self.pyramid else value
            stride = self._out_feature_strides[level]
            maps[level] = value[..., : math.ceil(size[0] / stride), : math.ceil(size[1] / stride)]
        return maps

    def layer_numbers(self) -> dict[str, int]:
        """Return the layer of each pretrained parameter, the first 0: what layer-wise decay counts."""
        if hasattr(self.net, "group_matcher"):
            group = library().models.group_parameters
            numbers = group(self.net, self.net.group_matcher(coarse=False), reverse=True)
        else:
            names = [name for name, _ in self.net.named_parameters()]
            ends = [max(i for i, n in enumerate(names) if n.startswith(f"{e}.")) for e in self.stage_ends]
            numbers = {name: sum(end < i for end in ends) for i, name in enumerate(names)}
        return {f"net.{name}": number for name, number in numbers.items()}

    def pretrained_parts(self, stages: int | None) -> list[nn.Module | nn.Parameter]:
        """Return `net`, or what it has up to the end of its first `stages` stages."""
        if stages is None:
            return [self.net]
        check_stages(stages, len(self.stage_ends))
        numbers, end = self.layer_numbers(), f"net.{self.stage_ends[stages - 1]}."
        last = max((number for name, number in numbers.items() if name.startswith(end)), default=-1)
        frozen = {name for name, number in numbers.items() if number <= last}
        if not frozen or (len(frozen) == len(numbers) and stages < len(self.stage_ends)):
            raise ValueError(
                f"MODEL.BACKBONE.FREEZE is 'stages {stages}', but {self.record['architecture']} does not "
                "consist of one stage after the other: use 'all', 'norms' or 'none'."
            )
        parameters = [value for name, value in self.named_parameters() if name in frozen]
        return [*parameters, *modules_of(self.net, {id(value) for value in parameters})]

    def convert_weights(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
        """Return a file of the whole net under the names of `net`, without what was cut off, and a remark.

        Names are timm's, or those that timm converts (torchvision's and authors'); else entries are taken by
        order and shape, if both agree completely. Without any of these the result is `state` itself.
        """
        own = self.net.state_dict()

        def count(candidate: Mapping[str, Tensor]) -> int:
            return sum(name in own and own[name].shape == v.shape for name, v in candidate.items())

        named, remark = dict(state), ""
        converted = self._converted_by_timm(state)
        if count(converted) > count(named):
            named, remark = converted, "names and position tables converted by timm"
        if count(named) < len(own) // 2 and (ordered := in_order(state, self.file_shapes)):
            named = ordered
            remark = f"its names are others: all {len(ordered)} entries fitted by order and shape"
        if not count(named):
            return dict(state), ""
        licence = self.record.get("license") or "unknown"
        origin = f"{self.record['architecture']}.{self.record['tag']}"
        remark = "; ".join(filter(None, [remark, f"licence by timm's record of {origin}: {licence}"]))
        cut_off = self.file_shapes.keys() - own.keys()
        return {name: value for name, value in named.items() if name not in cut_off}, remark

    def _converted_by_timm(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        convert = getattr(sys.modules[type(self.net).__module__], "checkpoint_filter_fn", None)
        try:
            return convert(dict(state), self.net) if convert else {}
        except (KeyError, ValueError, RuntimeError, AttributeError, IndexError, AssertionError):
            return {}  # a file of another net

    def _finished(self, power: int, features: Tensor, size: Sequence[int]) -> Tensor:
        """Return a map of the net at the stride 2**power of a picture of `size`, normalised."""
        features = resized_grid(features, self.strides[power], 2**power)
        features = features[..., : size[0] >> power, : size[1] >> power]
        return self.norms[LEVELS[power]](features) if LEVELS[power] in self.norms else features


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Return the net MODEL.TIMM.NAME."""
    return TimmBackbone(
        cfg.MODEL.TIMM.NAME,
        in_channels=input_shape.channels,
        drop_path_rate=cfg.MODEL.TIMM.DROP_PATH_RATE,
        out_features=cfg.MODEL.TIMM.OUT_FEATURES,
    )


def resized_grid(features: Tensor, stride: int, wanted: int) -> Tensor:
    """Return a map at another stride, each pixel where it is in the picture."""
    if stride == wanted:
        return features
    # By the factor, not to a size, since the last row and column may lie half outside.
    return F.interpolate(features, scale_factor=stride / wanted, mode="bilinear")


def with_pixel_statistics(cfg: CfgNode) -> CfgNode:
    """Return `cfg` with the mean and deviation of a timm net's record, where it has Detectron2's defaults."""
    model, defaults = cfg.MODEL, get_cfg().MODEL
    is_set = (model.PIXEL_MEAN, model.PIXEL_STD) != (defaults.PIXEL_MEAN, defaults.PIXEL_STD)
    if is_set or model.BACKBONE.NAME != "build_timm_backbone":
        return cfg
    record = library().get_pretrained_cfg(checked_name(model.TIMM.NAME))
    order = slice(None, None, 1 if cfg.INPUT.FORMAT == "RGB" else -1)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = (
        [value * 255 for value in values[order]] for values in (record.mean, record.std)
    )
    return cfg


def _nearest(power: int, levels: Sequence[int]) -> int:
    """Return the level to make `power` from: the next coarser one, else the coarsest of the four."""
    usable = [level for level in levels if level in LEVELS]
    return min((level for level in usable if level >= power), default=max(usable))


def _scaled(channels: int, steps: int) -> tuple[nn.Module, int]:
    """Return layers that double the size `steps` times, or halve it -`steps` times, and their channels."""
    if steps < 0:
        return nn.MaxPool2d(2**-steps, ceil_mode=True), channels
    layers: list[nn.Module] = []
    for step in range(steps):
        if step:
            layers += [ChannelNorm(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
        channels //= 2
    return nn.Sequential(*layers), channels
