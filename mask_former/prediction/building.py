"""The configuration that a checkpoint describes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from mask_former.checkpoint import described_config
from mask_former.config import load_config


def config_of_checkpoint(metadata: Mapping[str, Any], file: str | Path) -> CfgNode:
    """Return the configuration that a checkpoint describes; `file` is named in errors."""
    described = described_config(metadata)
    if described is None:
        raise ValueError(
            f"{file} holds weights only and does not describe its model: give the configuration, too "
            "(Predictor.from_config, --config-file); for published weights, the name in the zoo "
            "(Predictor.from_zoo)."
        )
    cfg = load_config()
    try:
        cfg.merge_from_other_cfg(described)
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{file} describes its model with a configuration that does not fit this version ({error}); "
            "give a configuration of this version (Predictor.from_config, --config-file)."
        ) from error
    return cfg
