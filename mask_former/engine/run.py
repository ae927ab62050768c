"""A run of train_net.py: options, configuration, logging, then training or evaluation."""

import importlib
import json
import logging
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng

from mask_former.checkpoint import Checkpointer, checkpoints_in, flat_metrics
from mask_former.config import load_config
from mask_former.engine.own_data import recipe_file, register_folder
from mask_former.engine.recipe import Request, is_timm
from mask_former.engine.recipe_changes import tell_changes
from mask_former.engine.record import recorded
from mask_former.engine.run_folder import claim
from mask_former.engine.screen import shown, start_logging
from mask_former.engine.start_weights import find_weights
from mask_former.engine.trainer import Trainer, checkpoint_metadata
from mask_former.evaluation import check_ground_truth
from mask_former.formats import replacing
from mask_former.inference.ruled_model import RuledModel
from mask_former.modeling.preparation import prepare_for_inference

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """The options of train_net.py; `train_net.py --help` has their meaning."""

    config_file: str = ""
    opts: Sequence[str] = ()
    imports: Sequence[str] = ()
    weights: str = ""
    output: str = ""
    resume: bool = False
    overwrite: bool = False
    eval_only: bool = False
    strict: bool = False
    allow_unsafe: bool = False
    data: str = ""
    layout: str = ""
    epochs: int | None = None
    backbone: str = ""
    ignore_faults: bool = False

    @classmethod
    def of(cls, arguments: Namespace) -> "RunOptions":
        """Return the options among the arguments of a command line."""
        return cls(**{field.name: getattr(arguments, field.name) for field in fields(cls)})


def main(options: RunOptions) -> Any:
    """Train or evaluate, in one of the processes of a run, and return the results."""
    start_logging(None, comm.get_rank())
    _import(options.imports)
    cfg = setup(options)
    with recorded(Path(cfg.OUTPUT_DIR)):
        results = _evaluate(cfg, options) if options.eval_only else _train(cfg, options)
    if results and comm.is_main_process():
        scores = Path(cfg.OUTPUT_DIR) / "scores.json"
        with replacing(scores) as partial:
            partial.write_text(json.dumps(flat_metrics(results), indent=1) + "\n")
        logger.info("Scores are in %s", scores)
    return results


def setup(options: RunOptions) -> CfgNode:
    """Set up data sets, log file and random seeds, and return the frozen configuration of a run."""
    opts = [*options.opts, *(("OUTPUT_DIR", options.output) if options.output else ())]
    cfg = load_config(_recipe(options, opts) if options.data else options.config_file, opts)
    if options.weights and (options.eval_only or not options.data):
        is_of_timm = cfg.MODEL.BACKBONE.NAME == "build_timm_backbone"
        start = find_weights(options.weights, Path(cfg.OUTPUT_DIR), options.allow_unsafe, is_of_timm)
        cfg.MODEL.WEIGHTS = str(start.file)
    if options.eval_only:
        cfg.MODEL.WEIGHTS = _weights_to_score(cfg, options.resume)
        cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / f"eval_{Path(cfg.MODEL.WEIGHTS).stem}")
    else:
        if options.overwrite and Path(cfg.MODEL.WEIGHTS).resolve().parent == Path(cfg.OUTPUT_DIR).resolve():
            raise ValueError(f"{cfg.MODEL.WEIGHTS} is in the folder that --overwrite empties: name another.")
        claim(cfg.OUTPUT_DIR, resume=options.resume, overwrite=options.overwrite)
    cfg.freeze()
    start_logging(cfg.OUTPUT_DIR, comm.get_rank())
    if cfg.DATASETS.FOLDER:
        register_folder(cfg)
    logger.debug("Environment:\n%s", collect_env_info())
    logger.debug("Options: %s", options)
    logger.debug("Configuration:\n%s", cfg.dump())
    if comm.is_main_process():
        (Path(cfg.OUTPUT_DIR) / "config.yaml").write_text(cfg.dump())
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not options.eval_only
    return cfg


def _recipe(options: RunOptions, opts: Sequence[Any]) -> Path:
    """Return the recipe of --data: written, or the one of the run that goes on or is scored."""
    folders = [value for key, value in zip(opts[::2], opts[1::2], strict=False) if key == "OUTPUT_DIR"]
    name = Path(options.data).expanduser().resolve().name
    output = Path(folders[-1]) if folders else Path("output") / name
    if (output / "recipe.yaml").is_file() and (options.resume or options.eval_only):
        logger.info("The recipe is that of the run, %s", output / "recipe.yaml")
        return output / "recipe.yaml"
    if not options.eval_only:
        # Before a recipe is replaced; what --overwrite deletes stays until the new run is known to start.
        claim(output, resume=options.resume or options.overwrite, overwrite=False)
    request = Request(
        epochs=options.epochs,
        backbone=options.backbone,
        ignore_faults=options.ignore_faults,
        layout=options.layout,
        processes=comm.get_world_size(),
    )
    if options.weights and not options.eval_only:
        start = find_weights(options.weights, output, options.allow_unsafe, is_timm(options.backbone))
        request = request._replace(start=start)
    return recipe_file(options.data, output, opts, request)


def _import(modules: Sequence[str]) -> None:
    """Import modules that register the user's data sets or models, from the working folder too."""
    if modules and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # the program's own folder is there, which may be another
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise  # the module is there, and imports another one that is not
            raise ModuleNotFoundError(
                f"--import {module}: there is no {module.replace('.', '/')}.py in {Path.cwd()}, nor such a "
                "module elsewhere on Python's path; start in its folder, or set PYTHONPATH."
            ) from error


def _weights_to_score(cfg: CfgNode, resume: bool) -> str:
    checkpoints = checkpoints_in(cfg.OUTPUT_DIR) if resume else []
    if checkpoints:
        return str(checkpoints[0])
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "--eval-only has no weights to score: give --weights FILE, or --resume for the last checkpoint "
            f"in {cfg.OUTPUT_DIR}."
        )
    return cfg.MODEL.WEIGHTS


def _train(cfg: CfgNode, options: RunOptions) -> Any:
    if options.resume:
        tell_changes(cfg)
    trainer = Trainer(cfg)
    trainer.checkpointer.strict = options.strict
    trainer.checkpointer.allow_unsafe = options.allow_unsafe
    trainer.resume_or_load(resume=options.resume)
    solver = cfg.SOLVER
    steps = f"{solver.MAX_ITER} steps of {solver.IMS_PER_BATCH} pictures, learning rate {solver.BASE_LR:.3g}"
    _tell(cfg, trainer.model, training=steps)
    results = trainer.train()
    folder = Path(cfg.OUTPUT_DIR)
    files = [folder / "model_best.pth"] * bool(cfg.TEST.BEST_METRIC) + [folder / "model_final.pth"]
    logger.info("Weights: %s; demo/demo.py --weights draws with them", " and ".join(map(str, files)))
    return results


def _evaluate(cfg: CfgNode, options: RunOptions) -> Any:
    check_ground_truth(cfg, cfg.DATASETS.TEST)
    model = Trainer.build_model(cfg)
    reading = {"strict": options.strict, "allow_unsafe": options.allow_unsafe}
    checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, metadata=checkpoint_metadata(cfg), **reading)
    checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
    assert checkpointer.report is not None
    random = [name for name in checkpointer.report.named("re-initialised") if "sem_seg_head." in name]
    if random:
        raise ValueError(
            f"--eval-only would score random weights: {cfg.MODEL.WEIGHTS} lacks {len(random)} entries of the "
            f"head, such as {random[0]}. Give --weights a checkpoint of a model with this configuration."
        )
    _tell(cfg, model)
    if cfg.TEST.PRECISION != "plain" and isinstance(model, RuledModel):
        model = prepare_for_inference(model, cfg.TEST.PRECISION, in_place=True)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_tta(cfg, model))
    if comm.is_main_process() and cfg.TEST.EXPECTED_RESULTS:
        verify_results(cfg, results)  # ends the program where they are not met
        logger.info("Results verification passed")
    return results


def _tell(cfg: CfgNode, model: torch.nn.Module, **more: str) -> None:
    """Log what is run on what, and where the results go."""
    names, kind = checkpoint_metadata(cfg)["class_names"], cfg.MODEL.META_ARCHITECTURE
    shown_names = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    device, total = next(model.parameters()).device, sum(p.numel() for p in model.parameters())
    rows = {
        "data": f"{', '.join(cfg.DATASETS.TRAIN)}; scored on {', '.join(cfg.DATASETS.TEST) or 'nothing'}",
        "classes": f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}: {shown_names}",
        "model": f"{kind} on {cfg.MODEL.BACKBONE.NAME}, {total / 1e6:.1f} M parameters",
        **more,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device}, {torch.get_num_threads()} threads",
        "results": f"{cfg.OUTPUT_DIR}; log.txt there has environment, configuration and every message",
    }
    logger.info("The run:\n%s", shown(rows))
