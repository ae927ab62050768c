"""The segmentation head: a pixel decoder, then a transformer decoder. Also renames old checkpoint entries."""

import logging
from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from mask_former.modeling.pixel_decoder import build_pixel_decoder, decode_pixels
from mask_former.modeling.structures import Prediction
from mask_former.modeling.transformer_decoder import build_transformer_decoder

logger = logging.getLogger(__name__)

# The value of MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE that selects the encoder inside the pixel decoder.
ENCODER_MEMORY = "transformer_encoder"


class TwoDecoderHead(nn.Module):
    """Base of heads with a pixel decoder and a transformer decoder that reads a map of it or the backbone."""

    # Published code renames the entries of checkpoints with no version, or with one below 2.
    _version = 2

    @configurable
    def __init__(
        self,
        *,
        pixel_decoder: nn.Module,
        predictor: nn.Module,
        transformer_in_feature: str,
        num_classes: int,
        ignore_value: int,
    ) -> None:
        """Combine two decoders.

        Args:
            pixel_decoder: see pixel_decoder.py.
            predictor: a transformer decoder, see transformer_decoder.py; its name in checkpoints.
            transformer_in_feature: name of the backbone's map it reads, or "transformer_encoder".
            num_classes: K.
            ignore_value: label of pixels without a class.
        """
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.transformer_in_feature = transformer_in_feature
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        # A public form of this hook needs a torch newer than our lowest.
        self._register_load_state_dict_pre_hook(rename_old_entries)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], mask_classification: bool = True
    ) -> dict[str, Any]:
        """Build both decoders for a backbone with maps of `input_shape`."""
        pixel_decoder = build_pixel_decoder(cfg, input_shape)
        in_channels = _memory_channels(cfg, input_shape, pixel_decoder)
        return {
            "pixel_decoder": pixel_decoder,
            "predictor": build_transformer_decoder(cfg, in_channels, mask_classification),
            "transformer_in_feature": cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def decode(self, features: dict[str, Tensor]) -> list[Prediction]:
        """Return the predictions of the supervised layers from maps (B, C_s, H/s, W/s), the answer last."""
        mask_features, memory = decode_pixels(self.pixel_decoder, features)
        if self.transformer_in_feature != ENCODER_MEMORY:
            memory = features[self.transformer_in_feature]
        return self.predictor(memory, mask_features)


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(TwoDecoderHead):
    """MaskFormer's head: a class and a mask for each query."""

    forward = TwoDecoderHead.decode


def _memory_channels(cfg: CfgNode, input_shape: dict[str, ShapeSpec], pixel_decoder: nn.Module) -> int:
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
    if name in input_shape:
        return input_shape[name].channels
    if name != ENCODER_MEMORY:
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {name!r}; the backbone gives "
            f"{list(input_shape)}. Name one of those, or {ENCODER_MEMORY!r}."
        )
    # Decoders written for the reference release lack the attribute; their encoders give CONVS_DIM channels.
    channels = getattr(pixel_decoder, "memory_channels", cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM)
    if channels is None:
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {name!r}, but there is no encoder in "
            f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME {cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME!r}. Choose "
            f"'TransformerEncoderPixelDecoder', or one of the backbone's maps {list(input_shape)}."
        )
    return channels


def old_names(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Map the old names of a head's entries at `prefix` to the current ones.

    Early checkpoints hold the pixel decoder's entries directly under the head. Current names are not part of
    the result, nor are old ones whose current one is present too.
    """
    names = set(names)
    current = (f"{prefix}pixel_decoder.", f"{prefix}predictor.")
    renamed = {
        name: f"{prefix}pixel_decoder.{name.removeprefix(prefix)}"
        for name in names
        if name.startswith(prefix) and not name.startswith(current)
    }
    return {old: new for old, new in renamed.items() if new not in names}


def rename_old_entries(state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the old entries of a head in place: a hook of `load_state_dict`, whatever the metadata."""
    renamed = old_names(state_dict, prefix)
    for old, new in renamed.items():
        state_dict[new] = state_dict.pop(old)
    if renamed:
        logger.info(
            "Renamed %d entries of an old checkpoint: %s* to %spixel_decoder.*", len(renamed), prefix, prefix
        )
