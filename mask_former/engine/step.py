"""One training step: the gradient of a batch, in one part or several, a check of both, the update."""

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from mask_former.data.loader import build_train_loader, training_seed
from mask_former.engine.failed_steps import StepRecorder
from mask_former.inference.ruled_model import unwrapped
from mask_former.solver import parameter_names, state_by_name

logger = logging.getLogger(__name__)

Batch = list[dict[str, Any]]
AMP_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# A gradient scaler overflows now and then, and lowers its scale. At this scale the overflow is not its own.
LOWEST_SCALE = 1.0


class TrainingData:
    """The batches of a run from `start_iteration` on.

    The loader is built when the first batch is requested, so that a checkpoint, which is read after the
    trainer is built, can set seed and start.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.seed = training_seed(cfg)
        self.start_iteration = 0

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from build_train_loader(self.cfg, start_iteration=self.start_iteration, seed=self.seed)
        except (ConnectionError, EOFError) as error:
            raise RuntimeError(
                f"A data worker ended in the middle of its work ({error}), perhaps for want of memory: lower "
                "DATALOADER.NUM_WORKERS, then --resume."
            ) from error


class TrainStep(SimpleTrainer):
    """Detectron2's step with gradient accumulation, two types of mixed precision and a check for NaN.

    Random numbers (dropout) are seeded at each step by seed, rank and iteration, so that a resumed run equals
    an uninterrupted one and evaluation does not affect training.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, data: TrainingData, optimizer: Optimizer) -> None:
        super().__init__(model, data, optimizer)
        self.accumulate = cfg.SOLVER.ACCUMULATE
        self.amp_type = _amp_type(cfg)
        self.report_folder = Path(cfg.OUTPUT_DIR)
        self.recorder = StepRecorder(cfg)
        self.batch: Batch | None = None
        self.last_seed = 0
        self.skips_allowed, self.skips = cfg.SOLVER.SKIP_NOT_FINITE, 0
        self.device_type = next(model.parameters()).device.type
        # Does nothing unless enabled.
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=self.amp_type == torch.float16)
        pictures, parts = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size() * self.accumulate
        if self.accumulate < 1 or pictures % parts:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {pictures}, expected a multiple of {parts} "
                f"({comm.get_world_size()} processes x SOLVER.ACCUMULATE {self.accumulate})"
            )

    def run_step(self) -> None:
        """Train on one batch; a step that fails is recorded."""
        start = time.perf_counter()
        self.batch = None
        self.batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        try:
            self._train_on(self.batch)
        except Exception as error:
            self.recorder.record(self, self.batch, error, "before the update")
            raise
        get_event_storage().put_scalar("data_time", data_time)

    def _train_on(self, batch: Batch) -> None:
        self.last_seed = step_seed(self.data_loader.seed, comm.get_rank(), self.iter)
        torch.manual_seed(self.last_seed)
        self.optimizer.zero_grad()
        losses = self._backward_in_memory(batch)
        # Before the check and the step, which may begin with clipping: a fused optimizer would unscale later.
        self.grad_scaler.unscale_(self.optimizer)
        if self._log(losses, batch):
            self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _backward_in_memory(self, batch: Batch) -> dict[str, Tensor]:
        """Do `backward`, in more and smaller parts where memory does not suffice."""
        while True:
            try:
                return self.backward(batch)
            except (RuntimeError, MemoryError) as error:
                parts = more_parts(len(batch), self.accumulate)
                # Other processes would wait for this one's gradients.
                if not is_out_of_memory(error) or not parts or comm.get_world_size() > 1:
                    raise
                reason = str(error).partition("\n")[0][:120]
            # After the except block, which keeps the tensors of the failed pass alive.
            self.accumulate = parts
            self.optimizer.zero_grad()
            if self.device_type == "cuda":
                torch.cuda.empty_cache()
            torch.manual_seed(self.last_seed)
            logger.warning(
                "Out of memory at iteration %d (%s): the batch of %d is now drawn in %d parts, with the same "
                "gradient. SOLVER.ACCUMULATE %d does so from the start.",
                *(self.iter, reason, len(batch), parts, parts),
            )

    def backward(self, batch: Batch) -> dict[str, Tensor]:
        """Add the gradient of the whole batch to the parameters and return its losses, detached."""
        size = len(batch) // self.accumulate
        parts = [batch[first : first + size] for first in range(0, len(batch), size)]
        summed: dict[str, Tensor] = {}
        for number, (part, arguments, weight) in enumerate(self._shares(parts)):
            # Gradients are averaged over processes with the last part only.
            is_local = number < len(parts) - 1 and isinstance(self.model, DistributedDataParallel)
            with (
                self.model.no_sync() if is_local else nullcontext(),
                torch.autocast(self.device_type, self.amp_type, enabled=self.amp_type is not None),
            ):
                losses = {name: loss * weight for name, loss in self.model(part, **arguments).items()}
                # DistributedDataParallel needs forward and backward pass in the same context.
                self.grad_scaler.scale(sum(losses.values())).backward()
            for name, loss in losses.items():
                summed[name] = summed.get(name, 0) + loss.detach()
        return summed

    def _shares(self, parts: Sequence[Batch]) -> list[tuple[Batch, dict[str, Any], float | Tensor]]:
        """Return each part with the model's extra arguments and the factor on its losses.

        With them, the losses of the parts add up to those of the whole batch.
        """
        if len(parts) == 1:
            return [(parts[0], {}, 1.0)]
        model: Any = unwrapped(self.model)
        return [(part, *share) for part, share in zip(parts, model.step_shares(parts), strict=True)]

    def _log(self, losses: dict[str, Tensor], batch: Batch) -> bool:
        """Log the losses, averaged over processes, and return whether they and the gradient are finite.

        Raises FloatingPointError unless SOLVER.SKIP_NOT_FINITE or the gradient scaler allows the step to be
        skipped. All processes come to the same answer, and the device is waited for once.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        own = torch.stack([*losses.values(), norm.to(self.device_type)]).float()
        mean = own.clone()
        if comm.get_world_size() > 1:
            dist.all_reduce(mean)
            mean /= comm.get_world_size()
        *values, mean_norm = mean.tolist()
        total = sum(values)
        is_finite = math.isfinite(total) and math.isfinite(mean_norm)
        if is_finite:
            self.skips = 0
        elif not math.isfinite(total) or not self._is_overflow_of_scaler():
            report = dict(zip([*losses, "norm"], own.tolist(), strict=True))
            self._skip_or_raise(total, mean_norm, report, batch)
            return False
        storage = get_event_storage()
        storage.put_scalar("total_loss", total)
        storage.put_scalars(**dict(zip(losses, values, strict=True)))
        return is_finite

    def _is_overflow_of_scaler(self) -> bool:
        return self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() > LOWEST_SCALE

    def _skip_or_raise(self, total: float, norm: float, own: dict[str, float], batch: Batch) -> None:
        """Write a report of a step that is not finite; raise after too many of them in a row."""
        file = self._report(own, batch)
        what = f"The loss is {total} and the gradient norm {norm} at iteration {self.iter}"
        self.skips += 1
        if self.skips > self.skips_allowed:
            raise FloatingPointError(
                f"{what}: the batch, each loss and the learning rate are in {file}. The weights are as "
                "before. Look at those pictures and labels, lower SOLVER.BASE_LR or set SOLVER.AMP.ENABLED "
                "False, then --resume; SOLVER.SKIP_NOT_FINITE N skips up to N such steps in a row."
            )
        logger.warning("%s: skipped (%d of %d in a row), see %s", what, self.skips, self.skips_allowed, file)

    def _report(self, own: dict[str, float], batch: Batch) -> Path:
        """Write a report of a step that is not finite, with this process's losses, and return its file."""
        report = {
            "iteration": self.iter,
            "files": [picture.get("file_name", "") for picture in batch],
            "gradient_norm": own.pop("norm"),
            "losses": own,
            "learning_rates": sorted({group["lr"] for group in self.optimizer.param_groups}),
        }
        file = self.report_folder / f"not_finite_{self.iter:07d}_rank{comm.get_rank()}.json"
        file.write_text(json.dumps(report, indent=1) + "\n")
        return file

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run continues from."""
        state = super().state_dict()
        names = parameter_names(unwrapped(self.model), self.optimizer)
        state |= {"grad_scaler": self.grad_scaler.state_dict(), "parameter_names": names}
        return {**state, "seed": self.data_loader.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of `state_dict`; a scaler's state only if this run has a scaler.

        The optimizer's state goes to the parameters by name, and rates are those of this run.
        """
        optimizer, names = state_dict["optimizer"], parameter_names(unwrapped(self.model), self.optimizer)
        if "parameter_names" in state_dict:
            optimizer = state_by_name(optimizer, state_dict["parameter_names"], self.optimizer, names)
        super().load_state_dict({**state_dict, "optimizer": optimizer})
        self.data_loader.seed = state_dict.get("seed", self.data_loader.seed)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def step_seed(seed: int, rank: int, iteration: int) -> int:
    """Return the seed of a step's random numbers, which differs by seed, rank and iteration."""
    low, high = np.random.SeedSequence((seed, rank, iteration)).generate_state(2).tolist()
    return (high << 32 | low) & (2**63 - 1)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an allocation failed, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ("can't allocate memory", "not enough memory", "bad_alloc"))


def more_parts(pictures: int, parts: int) -> int:
    """Return the least number of equal parts that is at least twice as many, 0 if there is none."""
    return next((n for n in range(2 * parts, pictures + 1) if pictures % n == 0), 0)


def _amp_type(cfg: CfgNode) -> torch.dtype | None:
    """Return the type for autocast, or None if mixed precision is off."""
    if cfg.SOLVER.AMP.DTYPE not in AMP_TYPES:
        raise ValueError(f"SOLVER.AMP.DTYPE is {cfg.SOLVER.AMP.DTYPE!r}, expected one of {sorted(AMP_TYPES)}")
    return AMP_TYPES[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None
