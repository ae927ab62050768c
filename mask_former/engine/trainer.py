"""Detectron2's trainer with the project's data, solver, training step and evaluators."""

import logging
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, hooks
from detectron2.engine.hooks import HookBase
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mask_former.checkpoint import Checkpointer, describe, flat_metrics
from mask_former.config import recomputes_activations, refuse_unsupported
from mask_former.data.loader import build_test_loader
from mask_former.engine.averaging import BothEvaluator, WeightAverage
from mask_former.engine.hooks import KeepBest, ProgressLine, SaveAndClean, StopOnSignal
from mask_former.engine.sample_pictures import draw_samples
from mask_former.engine.screen import ProgressBar
from mask_former.engine.step import TrainingData, TrainStep
from mask_former.evaluation import build_evaluators, check_evaluators, check_ground_truth, semantic_form
from mask_former.evaluation.build import evaluators_of
from mask_former.inference.ruled_model import with_rules
from mask_former.inference.tta import SemanticSegmentorWithTTA
from mask_former.modeling.build import build_model, recompute_activations
from mask_former.solver import build_lr_scheduler, build_optimizer

logger = logging.getLogger(__name__)

# Iterations between progress lines, and between entries of the log files.
LOG_PERIOD = 20


class Trainer(DefaultTrainer):
    """Trains, evaluates, saves and resumes the model of a configuration."""

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)  # DefaultTrainer's constructor would build another step
        refuse_unsupported(cfg)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        if recomputes_activations(cfg):
            recompute_activations(model)
        optimizer = self.build_optimizer(cfg, model)
        if comm.get_world_size() > 1:
            model = DistributedDataParallel(model, broadcast_buffers=False)
        self._trainer = TrainStep(cfg, model, TrainingData(cfg), optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model, cfg.OUTPUT_DIR, metadata=checkpoint_metadata(cfg), trainer=weakref.proxy(self)
        )
        self.average = WeightAverage(model, cfg.SOLVER.EMA_DECAY) if cfg.SOLVER.EMA_DECAY else None
        if self.average:
            self.checkpointer.saving = self.average.applied
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the last checkpoint in OUTPUT_DIR if asked and possible, else load MODEL.WEIGHTS."""
        if resume and self.checkpointer.has_checkpoint():
            super().resume_or_load(resume)
        else:
            folder, weights = self.cfg.OUTPUT_DIR, self.cfg.MODEL.WEIGHTS
            if resume:
                logger.warning("Nothing to resume in %s: starting from MODEL.WEIGHTS %r", folder, weights)
            self.checkpointer.load(weights, checkpointables=[], match_class_names=True)
        self._trainer.data_loader.start_iteration = self.start_iter

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a saved state; learning rates follow from this run's configuration."""
        base_rates = list(self.scheduler.base_lrs)
        super().load_state_dict(state_dict)
        self.scheduler.base_lrs = base_rates
        self.scheduler.last_epoch -= 1
        self.scheduler.step()

    def after_step(self) -> None:
        """Run the hooks; a step after which one of them fails is recorded."""
        try:
            super().after_step()
        except Exception as error:
            self._trainer.recorder.record(self._trainer, self._trainer.batch, error, "after the update")
            raise

    def train(self) -> Any:
        """Train and return the results of the last evaluation, or None if there was none."""
        if self.start_iter >= self.max_iter:
            logger.warning(
                "Nothing to train: %s holds %d of %d iterations. Raise SOLVER.MAX_ITER to go on, or use "
                "--eval-only for its scores.",
                self.cfg.OUTPUT_DIR,
                self.start_iter,
                self.max_iter,
            )
            if not (Path(self.cfg.OUTPUT_DIR) / "model_final.pth").exists():
                self._save_final()  # killed between the last two checkpoints
            return None
        check_ground_truth(self.cfg, self.cfg.DATASETS.TEST)
        super().train()
        return getattr(self, "_last_eval_results", None)

    def build_hooks(self) -> list[HookBase]:
        """Return the hooks in the order in which they run."""
        cfg = self.cfg
        is_main = comm.is_main_process()
        result = [hooks.IterationTimer(), hooks.LRScheduler(), *([self.average] if self.average else [])]
        if is_main:
            result.append(SaveAndClean(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        # After the checkpoint is saved, in case evaluation fails.
        result.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
        if is_main and cfg.TEST.BEST_METRIC:
            result.append(KeepBest(self.checkpointer, cfg.TEST.BEST_METRIC))
        if is_main:
            result += [hooks.PeriodicWriter(self.build_writers(), period=LOG_PERIOD), ProgressBar()]
        return [*result, StopOnSignal(self.checkpointer)]

    def _evaluate(self) -> OrderedDict | None:
        if self.iter == self.max_iter - 1:
            return None  # Detectron2's hook evaluates, too, when the last step has failed
        model = self.average.averaged_model() if self.average else self.model
        beside = self.model if self.average else None
        self._last_eval_results = self.test(self.cfg, model, beside=beside)
        self.checkpointer.metadata["metrics"] = flat_metrics(self._last_eval_results or {})
        if self.iter == self.max_iter:
            self.iter -= 1  # a resumed run reads the last finished iteration
            self._save_final()  # again, now with the metrics
            self.iter += 1
        cfg, count = self.cfg, self.cfg.TEST.SAMPLE_PICTURES
        if comm.is_main_process() and cfg.DATASETS.TEST and count:
            picture = Path(cfg.OUTPUT_DIR) / "samples" / f"iter_{self.iter:07d}.png"
            draw_samples(model, cfg, cfg.DATASETS.TEST[0], count, picture)
        return self._last_eval_results

    def _save_final(self) -> None:
        self.checkpointer.save("model_final", iteration=self.iter)

    def build_writers(self) -> list[EventWriter]:
        """Return the writers of the progress line, metrics.json and TensorBoard files."""
        folder = Path(self.cfg.OUTPUT_DIR)
        return [
            ProgressLine(self.max_iter, self.cfg.SOLVER.IMS_PER_BATCH),
            JSONWriter(str(folder / "metrics.json")),
            TensorboardXWriter(str(folder)),
        ]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """See `modeling.build.build_model`."""
        model = build_model(cfg)
        logger.debug("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """See `solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
        """See `solver.build_lr_scheduler`."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """See `data.loader.build_test_loader`."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """See `evaluation.build_evaluators`; files go to OUTPUT_DIR/inference by default."""
        return build_evaluators(cfg, dataset_name, output_folder or str(Path(cfg.OUTPUT_DIR) / "inference"))

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: list[DatasetEvaluator] | None = None,
        beside: nn.Module | None = None,
    ) -> OrderedDict:
        """Return the scores of the model on every set of DATASETS.TEST, by task and name.

        Those of a model `beside` it, for the same pictures in the same pass, are rows of their own (`_raw`).
        """
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        check_evaluators(cfg, evaluators)
        form = semantic_form(evaluators)
        if beside is not None:
            folder, second = (
                str(Path(cfg.OUTPUT_DIR) / "inference_raw"),
                with_rules(beside, semantic_form=form),
            )
            others = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
            evaluators = [BothEvaluator(*pair, second) for pair in zip(evaluators, others, strict=True)]
        return super().test(cfg, with_rules(model, semantic_form=form), evaluators)

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Return the semantic scores of the model over flips and scales, as rows of their own (`_TTA`)."""
        folder = str(Path(cfg.OUTPUT_DIR) / "inference_TTA")
        semantic_only = cfg.clone()
        semantic_only.defrost()
        semantic_only.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
        semantic_only.MODEL.MASK_FORMER.TEST.INSTANCE_ON = False
        for name in cfg.DATASETS.TEST:
            if "SEMANTIC_ON" not in evaluators_of(cfg, name):
                raise ValueError(
                    f"Test-time augmentation averages semantic results, which are not evaluated on {name}: "
                    "set TEST.AUG.ENABLED False, or MODEL.MASK_FORMER.TEST.SEMANTIC_ON True where its "
                    "evaluator_type has semantic scores."
                )
        evaluators = [cls.build_evaluator(semantic_only, name, folder) for name in cfg.DATASETS.TEST]
        augmented = SemanticSegmentorWithTTA(semantic_only, model, semantic_form=semantic_form(evaluators))
        results = cls.test(semantic_only, augmented, evaluators)
        return OrderedDict((f"{task}_TTA", scores) for task, scores in results.items())


def checkpoint_metadata(cfg: CfgNode) -> dict[str, Any]:
    """Return the metadata saved with the checkpoints of a run."""
    return describe(cfg, MetadataCatalog.get(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else None)
