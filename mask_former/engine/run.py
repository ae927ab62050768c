"""A run of train_net.py: command line, configuration, logging, then training or evaluation."""

import importlib
import logging
from argparse import ArgumentParser, Namespace
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from mask_former.checkpoint import Checkpointer
from mask_former.config import load_config
from mask_former.engine.recipe_changes import tell_changes
from mask_former.engine.run_folder import claim
from mask_former.engine.trainer import Trainer, checkpoint_metadata
from mask_former.evaluation import check_ground_truth

logger = logging.getLogger(__name__)


def argument_parser(epilog: str | None = None) -> ArgumentParser:
    """Return Detectron2's parser with the flags of this project."""
    parser = default_argument_parser(epilog)
    parser.add_argument(
        *("--import", "-m"),
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python module to import first, which registers your own data sets or models",
    )
    parser.add_argument(
        "--strict", action="store_true", help="refuse weights that do not fit the model in every entry"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the checkpoints of an earlier run in OUTPUT_DIR"
    )
    parser.add_argument("--allow-unsafe", action="store_true", help="read weight files that may run code")
    return parser


def setup(arguments: Namespace) -> CfgNode:
    """Set up logging and random seeds, and return the frozen configuration of a command line."""
    cfg = load_config(arguments.config_file or None, arguments.opts)
    cfg.freeze()
    if not arguments.eval_only:
        claim(cfg.OUTPUT_DIR, resume=arguments.resume, overwrite=arguments.overwrite)
    default_setup(cfg, arguments)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="mask_former")
    logger.info("Running on %s", cfg.MODEL.DEVICE)
    return cfg


def main(arguments: Namespace) -> Any:
    """Train or evaluate, in one of the processes of a run, and return the results."""
    for module in arguments.imports:
        importlib.import_module(module)  # registers the user's data sets or models
    cfg = setup(arguments)
    if not arguments.eval_only:
        if arguments.resume:
            tell_changes(cfg)
        trainer = Trainer(cfg)
        trainer.checkpointer.strict = arguments.strict
        trainer.checkpointer.allow_unsafe = arguments.allow_unsafe
        trainer.resume_or_load(resume=arguments.resume)
        return trainer.train()
    check_ground_truth(cfg, cfg.DATASETS.TEST)
    model = Trainer.build_model(cfg)
    reading = {"strict": arguments.strict, "allow_unsafe": arguments.allow_unsafe}
    checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, metadata=checkpoint_metadata(cfg), **reading)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=arguments.resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_tta(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
