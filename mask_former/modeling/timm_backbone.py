"""Backbones of timm, hierarchical or plain, as maps `res2` (1/4 of the picture) to `res5` (1/32)."""

import difflib
import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = {2: "res2", 3: "res3", 4: "res4", 5: "res5"}  # log2 of the stride -> name
STRIDE = 32


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
        self.multiple, found = _probe(name, options)
        net = _create(name, options)
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
        if count(named) < len(own) // 2 and (ordered := _in_order(state, self.file_shapes)):
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


def _in_order(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the entries of `state` under the names of `shapes`, empty unless all shapes agree in order."""
    counter = "num_batches_tracked"  # absent in old files, and not needed
    values = [value for name, value in state.items() if not name.endswith(counter)]
    names = [name for name in shapes if not name.endswith(counter)]
    if [tuple(value.shape) for value in values] != [shapes[name] for name in names]:
        return {}
    return dict(zip(names, values, strict=True))


def library() -> Any:
    """Return timm, which is optional."""
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ModuleNotFoundError(
            "MODEL.BACKBONE.NAME build_timm_backbone needs timm: pip install 'mask-former[timm]'", name="timm"
        ) from error


def with_pixel_statistics(cfg: CfgNode) -> CfgNode:
    """Return `cfg` with the mean and deviation of a timm net's record, where it has Detectron2's defaults."""
    model, defaults = cfg.MODEL, get_cfg().MODEL
    is_set = (model.PIXEL_MEAN, model.PIXEL_STD) != (defaults.PIXEL_MEAN, defaults.PIXEL_STD)
    if is_set or model.BACKBONE.NAME != "build_timm_backbone":
        return cfg
    record = library().get_pretrained_cfg(_checked(model.TIMM.NAME))
    order = slice(None, None, 1 if cfg.INPUT.FORMAT == "RGB" else -1)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = (
        [value * 255 for value in values[order]] for values in (record.mean, record.std)
    )
    return cfg


def _checked(name: str) -> str:
    timm = library()
    if timm.is_model(name):
        base, _, tag = name.partition(".")
        if tag and name not in (tagged := timm.list_pretrained(f"{base}.*")):
            raise ValueError(
                f"MODEL.TIMM.NAME is {name!r}, but the tags are {', '.join(tagged)}; or give none."
            )
        return name
    known = timm.list_models()
    close = difflib.get_close_matches(name.split(".")[0], known, n=3) or timm.list_models(f"*{name}*")[:3]
    hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() has their names."
    raise ValueError(f"MODEL.TIMM.NAME is {name!r}, which timm {timm.__version__} does not have; {hint}")


def _create(name: str, options: dict[str, Any]) -> Any:
    """Return a net of timm, for pictures of any size where it has an option for that."""
    create: Callable[..., Any] = library().create_model
    try:
        return create(_checked(name), **options, dynamic_img_size=True)
    except TypeError:  # no such argument
        return create(name, **options)


@torch.no_grad()
def _probe(name: str, options: dict[str, Any]) -> tuple[int, list[tuple[int, int]]]:
    """Return the divisor of the picture sizes that a net takes, and stride and channels of its maps."""
    with torch.device("meta"):  # shapes alone
        net = _create(name, options).eval()
        if not hasattr(net, "prune_intermediate_layers"):
            raise ValueError(f"MODEL.TIMM.NAME {name}: timm has no maps of this net. Choose another.")
        error: Exception | None = None
        largest = max(entry["reduction"] for entry in net.feature_info)
        for multiple in dict.fromkeys((STRIDE, 2 * STRIDE, largest, net.pretrained_cfg["input_size"][1])):
            size = (2 * multiple, 3 * multiple)
            try:
                maps = net.forward_intermediates(
                    torch.empty(1, options["in_chans"], *size), intermediates_only=True
                )
            except (RuntimeError, AssertionError) as refusal:
                error = refusal
                continue
            strides = [{side / own for side, own in zip(size, m.shape[-2:], strict=True)} for m in maps]
            if all(len(both) == 1 and min(both).is_integer() for both in strides):
                return multiple, [(int(min(s)), m.shape[1]) for s, m in zip(strides, maps, strict=True)]
    raise ValueError(
        f"MODEL.TIMM.NAME {name}: in timm, this net does not give maps of pictures of any size. Choose "
        "another, such as convnext_tiny or vit_small_patch14_dinov2."
    ) from error


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
