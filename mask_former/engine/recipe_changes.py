"""What differs between the configuration of a run and that of the checkpoint it is to go on from."""

import logging

from detectron2.config import CfgNode

from mask_former.checkpoint import checkpoints_in, described_config, read_metadata
from mask_former.checkpoint.description import MACHINE_KEYS
from mask_former.checkpoint.reading import DamagedFileError
from mask_former.config import leaves

logger = logging.getLogger(__name__)

# Beginnings of keys that decide which parameters there are, what they mean, or what is kept for each.
FIXED = (
    *("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.RESNETS.", "MODEL.SWIN.PATCH_"),
    *("MODEL.SWIN.EMBED_DIM", "MODEL.SWIN.DEPTHS", "MODEL.SWIN.NUM_HEADS", "MODEL.SWIN.WINDOW_SIZE"),
    *("MODEL.SWIN.MLP_RATIO", "MODEL.SWIN.QKV_BIAS", "MODEL.SWIN.APE", "MODEL.SWIN.PRETRAIN_IMG_SIZE"),
    *("MODEL.SWIN.OUT_FEATURES", "MODEL.SEM_SEG_HEAD.NAME", "MODEL.SEM_SEG_HEAD.IN_FEATURES"),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "MODEL.SEM_SEG_HEAD.MASK_DIM"),
    *("MODEL.SEM_SEG_HEAD.NORM", "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "MODEL.MASK_FORMER.TRANSFORMER_"),
    *("MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ", "MODEL.MASK_FORMER.HIDDEN_DIM", "MODEL.MASK_FORMER.NHEADS"),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "MODEL.MASK_FORMER.DIM_FEEDFORWARD"),
    *("MODEL.MASK_FORMER.DEC_LAYERS", "MODEL.MASK_FORMER.ENC_LAYERS", "MODEL.MASK_FORMER.PRE_NORM"),
    *("SOLVER.OPTIMIZER", "SOLVER.LR_SCHEDULER_NAME"),
)
MOST_LINES = 20


def tell_changes(cfg: CfgNode) -> None:
    """Log one line for each key that differs from the checkpoint to resume; nothing without a checkpoint.

    Raises ValueError, before anything is built, if one of them is FIXED.
    """
    changes = _changes(cfg)
    fixed = [line for key, line in changes.items() if key.startswith(FIXED)]
    if fixed:
        raise ValueError(
            f"Cannot resume in {cfg.OUTPUT_DIR} with another model or optimizer: {'; '.join(fixed[:4])}. Set "
            "it back, or start in another OUTPUT_DIR with it as MODEL.WEIGHTS: what fits is loaded."
        )
    for line in list(changes.values())[:MOST_LINES]:
        logger.warning("Resuming with a changed recipe: %s", line)
    if len(changes) > MOST_LINES:
        logger.warning("Resuming with a changed recipe: %d keys more", len(changes) - MOST_LINES)


def _changes(cfg: CfgNode) -> dict[str, str]:
    """Return key -> what it was and is, against the first checkpoint that can be read."""
    for file in checkpoints_in(cfg.OUTPUT_DIR):
        try:
            before = described_config(read_metadata(file), file)
        except (DamagedFileError, OSError):
            continue
        except ValueError as error:  # of another version
            logger.warning("What has changed since the checkpoint is not known: %s", error)
            return {}
        if before is not None:
            old, new = leaves(before), leaves(cfg)
            return {
                key: f"{key} was {old.get(key)!r} and is {new[key]!r}"
                for key in new
                if old.get(key) != new[key] and key not in MACHINE_KEYS
            }
    return {}
