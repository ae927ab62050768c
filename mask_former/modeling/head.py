"""The segmentation head: pixel decoder, then transformer decoder. And the renaming of old checkpoints."""

import logging
from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from mask_former.modeling.pixel_decoder import build_pixel_decoder, decode_pixels
from mask_former.modeling.structures import Prediction
from mask_former.modeling.transformer_decoder import Inspection, build_transformer_decoder

logger = logging.getLogger(__name__)

# The value of MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE that means the encoder inside the pixel decoder.
ENCODER_MEMORY = "transformer_encoder"


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Pixel decoder and transformer decoder, joined by the choice of the map that the latter reads."""

    # Published code renames the entries of files that state no version or one below 2.
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
        """Join two decoders.

        Args:
            pixel_decoder: see pixel_decoder.py.
            predictor: a transformer decoder, see transformer_decoder.py; checkpoints know it by this name.
            transformer_in_feature: name of the backbone's map it reads, or "transformer_encoder".
            num_classes: K.
            ignore_value: label of pixels without a class, for those who prepare targets.
        """
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.transformer_in_feature = transformer_in_feature
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        accept_old_names(self)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Build both decoders for a backbone that gives maps of `input_shape`."""
        return {
            **build_decoders(cfg, input_shape, mask_classification=True),
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def forward(self, features: dict[str, Tensor]) -> list[Prediction]:
        """Return the predictions of the supervised layers, the answer last (alone in evaluation).

        Args:
            features: (B, C_s, H/s, W/s) by the name of the backbone's map.
        """
        return self.predictor(*decoder_inputs(self.pixel_decoder, self.transformer_in_feature, features))

    def inspect(self, features: dict[str, Tensor]) -> Inspection:
        """Return predictions, query embeddings and cross-attention of every layer; see `forward`."""
        inspect = getattr(self.predictor, "inspect", None)
        if inspect is None:
            raise TypeError(
                f"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME: {type(self.predictor).__name__} has no method "
                "`inspect`; give it one, or choose 'StandardTransformerDecoder'."
            )
        return inspect(*decoder_inputs(self.pixel_decoder, self.transformer_in_feature, features))


def build_decoders(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], *, mask_classification: bool
) -> dict[str, Any]:
    """Return `pixel_decoder`, `predictor` and `transformer_in_feature`, which fit together."""
    pixel_decoder = build_pixel_decoder(cfg, input_shape)
    in_channels = _memory_channels(cfg, input_shape, pixel_decoder)
    return {
        "pixel_decoder": pixel_decoder,
        "predictor": build_transformer_decoder(cfg, in_channels, mask_classification),
        "transformer_in_feature": cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE,
    }


def _memory_channels(cfg: CfgNode, input_shape: dict[str, ShapeSpec], pixel_decoder: nn.Module) -> int:
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
    if name in input_shape:
        return input_shape[name].channels
    if name != ENCODER_MEMORY:
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {name!r}; the backbone gives "
            f"{list(input_shape)}. Name one of those, or {ENCODER_MEMORY!r}."
        )
    # Decoders written for the reference release do not tell; those with an encoder give CONVS_DIM channels.
    channels = getattr(pixel_decoder, "memory_channels", cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM)
    if channels is None:
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {name!r}, but there is no encoder in "
            f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME {cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME!r}. Choose "
            f"'TransformerEncoderPixelDecoder', or one of the backbone's maps {list(input_shape)}."
        )
    return channels


def decoder_inputs(
    pixel_decoder: nn.Module, transformer_in_feature: str, features: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the memory (B, C', h', w') and mask features (B, C, h, w) that a transformer decoder takes."""
    mask_features, encoded = decode_pixels(pixel_decoder, features)
    if transformer_in_feature != ENCODER_MEMORY:
        return features[transformer_in_feature], mask_features
    assert encoded is not None, "refused when the head was built"
    return encoded, mask_features


def old_names(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Return old name -> new name for the entries of a head at `prefix` that lack `pixel_decoder.`.

    Early checkpoints hold the pixel decoder's entries directly under the head. New names are left alone,
    and so is an old one whose new one is present: renaming twice is renaming once.
    """
    names = set(names)
    renamed = {}
    for name in names:
        inner = name.removeprefix(prefix)
        is_ours = name.startswith(prefix)
        if is_ours and not inner.startswith(("pixel_decoder.", "predictor.")):
            renamed[name] = f"{prefix}pixel_decoder.{inner}"
    return {old: new for old, new in renamed.items() if new not in names}


def accept_old_names(head: nn.Module) -> None:
    """Make `head.load_state_dict` take checkpoints with old names as well, whatever their metadata."""
    # torch 2.4 has no public form of this hook.
    head._register_load_state_dict_pre_hook(_rename_in_place)


def _rename_in_place(state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    renamed = old_names(state_dict, prefix)
    for old, new in renamed.items():
        state_dict[new] = state_dict.pop(old)
    if renamed:
        logger.info(
            "Renamed %d entries of an old checkpoint: %s* to %spixel_decoder.*", len(renamed), prefix, prefix
        )
