#!/usr/bin/env python
"""A plain training loop to learn from: train_net.py without hooks, resuming and several processes.

    python examples/plain_train.py --output output/plain SOLVER.MAX_ITER 300

Trains on synthetic shapes, which are drawn on first use, and evaluates the result.
"""

import argparse
import logging
import time
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

import mask_former  # noqa: F401  (registers models and data sets)
from mask_former.config import load_config
from mask_former.data.loader import build_train_loader
from mask_former.engine import Trainer
from mask_former.solver import build_lr_scheduler, build_optimizer

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "shapes" / "maskformer_panoptic.yaml"
LOG_PERIOD = 20

logger = logging.getLogger("mask_former.plain_train")


def train(cfg, model):
    """Train `model` for SOLVER.MAX_ITER steps and save its weights; return the total loss of each step."""
    model.train()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    total_losses = []
    start = time.perf_counter()
    # The loader is endless. Each batch is a list of dicts, one per image: `image` (3, H, W) uint8 and
    # `instances`, with the classes `gt_classes` (M,) and the masks `gt_masks` (M, H, W) of its segments.
    for iteration, batch in zip(range(cfg.SOLVER.MAX_ITER), build_train_loader(cfg), strict=False):
        # Weighted losses by name: loss_ce, loss_mask, loss_dice of the last decoder layer; those of earlier
        # layers end in _0, _1, ...
        losses = model(batch)
        total = sum(losses.values())
        if not torch.isfinite(total):
            raise FloatingPointError(f"The loss is {total} at iteration {iteration}: lower SOLVER.BASE_LR.")
        optimizer.zero_grad()
        total.backward()
        optimizer.step()  # clips the gradients first, as SOLVER.CLIP_GRADIENTS says
        scheduler.step()
        total_losses.append(total.item())
        if iteration % LOG_PERIOD == LOG_PERIOD - 1:
            logger.info(
                "iter %d  total_loss %.3f  lr %.3g  %.3f s/iter",
                *(iteration + 1, total_losses[-1], optimizer.param_groups[0]["lr"]),
                (time.perf_counter() - start) / (iteration + 1),
            )
    DetectionCheckpointer(model, cfg.OUTPUT_DIR).save("model_final")
    return total_losses


def main(argv=None):
    """Train, evaluate and return the total losses and the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config-file", default=CONFIG, help="default: %(default)s")
    parser.add_argument("--output", required=True, help="folder for weights and predictions")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="configuration keys and values: KEY VALUE ...")
    arguments = parser.parse_args(argv)
    cfg = load_config(arguments.config_file, [*arguments.opts, "OUTPUT_DIR", arguments.output])
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    setup_logger(name="mask_former")
    torch.manual_seed(max(cfg.SEED, 0))

    model = build_model(cfg)
    total_losses = train(cfg, model)
    scores = Trainer.test(cfg, model)  # runs the model and the evaluators of each set of DATASETS.TEST
    return total_losses, scores


if __name__ == "__main__":
    main()
