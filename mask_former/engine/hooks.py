"""Hooks of a training run: stop on a signal, keep the last and the best checkpoints, log the progress."""

import json
import logging
import math
import os
import resource
import signal
from pathlib import Path
from types import FrameType

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage

from mask_former.engine.screen import progress_level

logger = logging.getLogger(__name__)

# What ends a run: a scheduler, a closed terminal, Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# Checkpoints of the period that stay: the last, and the one before in case that one is damaged.
KEPT = 2


class StopOnSignal(HookBase):
    """On one of SIGNALS to any process, finish the step, save a checkpoint and end all processes.

    The exit status is that of shells for a process ended by the signal. A second signal ends it at once.
    """

    def __init__(self, checkpointer: DetectionCheckpointer) -> None:
        self.checkpointer = checkpointer
        self.requested = 0

    def before_train(self) -> None:
        """Install the handlers; a signal that is ignored, as SIGHUP under nohup, stays ignored."""
        self.previous = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in self.previous.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = number

    def after_step(self) -> None:
        """Stop if any process has received a signal."""
        number = max(comm.all_gather(self.requested))
        if not number:
            return
        if comm.is_main_process():
            self.checkpointer.save(f"model_{self.trainer.iter:07d}")
        comm.synchronize()
        logger.warning(
            "Stopped by %s after iteration %d, which is saved: --resume goes on",
            signal.Signals(number).name,
            self.trainer.iter,
        )
        raise SystemExit(128 + number)

    def after_train(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class SaveAndClean(hooks.PeriodicCheckpointer):
    """Detectron2's hook, which also deletes the checkpoints of the period but the last KEPT.

    Those of an interrupted part of the run are counted too; model_best.pth and model_final.pth stay.
    """

    def after_step(self) -> None:
        """Save at the end of each period, and delete what is too old."""
        super().after_step()
        if (self.trainer.iter + 1) % self.period == 0:
            folder = Path(self.checkpointer.save_dir)
            for file in sorted(folder.glob(f"model_{'[0-9]' * 7}.pth"))[:-KEPT]:
                file.unlink()


class KeepBest(HookBase):
    """After each evaluation, save the weights as model_best.pth if their metric is the highest so far.

    A score that is not defined (NaN) is the lowest. A resumed run reads the value from model_best.json.
    Runs on the main process, after the evaluation hook.
    """

    def __init__(self, checkpointer: DetectionCheckpointer, metric: str) -> None:
        self.checkpointer = checkpointer
        self.metric = metric
        self.record = Path(checkpointer.save_dir) / "model_best.json"
        self.compared_at = -1

    def before_train(self) -> None:
        """Read the best value of the resumed run, if any."""
        is_resumed = self.trainer.start_iter > 0 and self.record.exists()
        self.best = json.loads(self.record.read_text())["value"] if is_resumed else math.nan

    def after_train(self) -> None:
        """Compare the value of the last evaluation, which runs after the last step."""
        self.after_step()

    def after_step(self) -> None:
        """Compare the latest value."""
        latest = get_event_storage().latest()
        if self.metric not in latest:
            if any("/" in name for name in latest):
                known = sorted(name for name in latest if "/" in name)
                raise KeyError(f"TEST.BEST_METRIC is {self.metric!r}, expected one of {known}")
            return
        value, iteration = latest[self.metric]
        if iteration == self.compared_at:
            return
        self.compared_at = iteration
        if math.isnan(self.best) or value > self.best:
            self.best = value
            self.checkpointer.save("model_best", tag_last=False, **{self.metric: float(value)})
            record = {"metric": self.metric, "value": float(value), "iteration": int(iteration)}
            self.record.write_text(json.dumps(record) + "\n")
            logger.info("Best %s so far: %.4f, kept as model_best.pth", self.metric, value)


class ProgressLine(EventWriter):
    """Logs progress: time left, losses, images per second, time spent on data, learning rate, memory."""

    def __init__(self, max_iter: int, images_per_step: int) -> None:
        self.max_iter = max_iter
        self.images_per_step = images_per_step

    def write(self) -> None:
        """Log one line for the latest iterations."""
        storage = get_event_storage()
        histories = storage.histories()
        if storage.iter >= self.max_iter or "time" not in histories:
            return  # after the last step, or before the first was timed
        step_time = histories["time"].median(20)
        losses = {name: history.median(20) for name, history in histories.items() if _is_total(name)}
        hours, seconds = divmod(int(step_time * (self.max_iter - storage.iter - 1)), 3600)
        logger.log(
            progress_level(),
            "iter %d/%d  eta %d:%02d:%02d  %s  images/s %.1f  step %.3fs  data %.3fs  lr %.3g  memory %d MB",
            storage.iter + 1,
            self.max_iter,
            hours,
            *divmod(seconds, 60),
            "  ".join(f"{name} {value:.4g}" for name, value in losses.items()),
            self.images_per_step / step_time,
            step_time,
            histories["data_time"].median(20),
            histories["lr"].latest(),
            peak_memory() // 2**20,
        )


def _is_total(name: str) -> bool:
    """Return whether the line shows a loss: the sum and the last layer's, not those of earlier layers."""
    return name == "total_loss" or (name.startswith("loss") and not name.rpartition("_")[2].isdigit())


def peak_memory() -> int:
    """Return the peak memory so far, in bytes: of the GPU if it is used, otherwise of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        # Of this program alone; ru_maxrss starts with the peak of the process that started it.
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        pass
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
