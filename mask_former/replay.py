"""Run a failed training step again, from the file that the run left, and find where it goes wrong.

    python -m mask_former.replay output/failed_steps/step_0001234_rank0.pth
    python -m mask_former.replay FILE --float32 --device cuda

Names the first module whose output, and the first whose gradient, is not finite, and the picture and the
segment behind it. The data set is not needed. Exit status: 0 the failure came again, 1 it did not, 2 the file
cannot be used.
"""

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from mask_former.checkpoint import described_config, read_checkpoint
from mask_former.engine.failed_steps import restored
from mask_former.engine.step import Batch, TrainingData, TrainStep
from mask_former.modeling.build import build_model
from mask_former.solver import build_optimizer

# Segments of a picture that are tried one by one.
MOST_SEGMENTS = 300


class Outcome(NamedTuple):
    """What a run of the step came to.

    losses: by name, of what ran before an error.
    error: what was raised, None if nothing was.
    output: the first module whose output was not finite, None if all were.
    gradient: the first place whose gradient was not finite, None if all were.
    """

    losses: dict[str, float]
    error: Exception | None
    output: str | None
    gradient: str | None

    @property
    def is_failure(self) -> bool:
        """Whether anything went wrong."""
        return bool(self.error or self.output or self.gradient)


class Watch:
    """Notes the first output and the first gradient of a model that are not finite."""

    def __init__(self, model: nn.Module) -> None:
        self.output: str | None = None
        self.gradient: str | None = None
        self.handles = [
            module.register_forward_hook(self._hook(name or "the model"))
            for name, module in model.named_modules()
        ]
        self.handles += [
            parameter.register_hook(self._gradient_hook(f"the parameter {name}"))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]

    def _hook(self, name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in tensors_in(output):
                if self.output is None and not tensor.isfinite().all():
                    self.output = name
                if tensor.requires_grad:
                    tensor.register_hook(self._gradient_hook(f"the output of {name}"))

        return look

    def _gradient_hook(self, place: str) -> Callable[[Tensor], None]:
        def look(gradient: Tensor) -> None:
            if self.gradient is None and not gradient.isfinite().all():
                self.gradient = place

        return look

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


class Replay:
    """A recorded step with its model, ready to run."""

    def __init__(self, file: str, device: str = "cpu", float32: bool = False) -> None:
        """Read a record and build its model.

        Args:
            file: written by a run.
            device: to run on.
            float32: instead of the precision that is recorded.
        """
        content = read_checkpoint(file)
        cfg = described_config(content.get("metadata", {}), file)
        if cfg is None or not isinstance(content.get("failure"), dict) or not content.get("batch"):
            raise ValueError(f"{file} is no record of a failed step; they lie under OUTPUT_DIR/failed_steps.")
        self.failure: dict[str, Any] = content["failure"]
        self.versions: dict[str, Any] = content.get("versions", {})
        self.batch: Batch = [restored(picture) for picture in content["batch"]]
        self.step = self._build(cfg, content, device, float32)

    def _build(self, cfg: CfgNode, content: dict[str, Any], device: str, float32: bool) -> TrainStep:
        cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE = len(self.batch), self.failure["accumulate"]
        cfg.SEED = 0  # of the data, which are not read
        if float32:
            cfg.SOLVER.AMP.ENABLED = False
        model = build_model(cfg, device, frozenset(content["metadata"].get("thing_classes", ())))
        model.load_state_dict(content["model"])
        step = TrainStep(cfg, model, TrainingData(cfg), build_optimizer(cfg, model))
        if step.grad_scaler.is_enabled() and content.get("grad_scaler"):
            step.grad_scaler.load_state_dict(content["grad_scaler"])
        return step

    def run(self, batch: Batch | None = None) -> Outcome:
        """Run the step, or its model on another batch, and return what it came to; no weight is changed."""
        step = self.step
        if batch is not None:
            step.accumulate = 1
        torch.manual_seed(self.failure["step_seed"])
        step.optimizer.zero_grad()
        watch = Watch(step.model)
        losses: dict[str, Tensor] = {}
        error: Exception | None = None
        try:
            losses = step.backward(self.batch if batch is None else batch)
        except Exception as failure:
            error = failure
        finally:
            watch.close()
        return Outcome({n: v.item() for n, v in losses.items()}, error, watch.output, watch.gradient)

    def culprits(self) -> list[str]:
        """Return the pictures, with their segments, that fail alone; none if all do, or none does."""
        bad = [number for number, picture in enumerate(self.batch) if self.run([picture]).is_failure]
        if not bad or len(bad) == len(self.batch) > 1:
            return []
        return [
            f"picture {n} of the batch, {self.batch[n].get('file_name', '')}{self._segments(n)}" for n in bad
        ]

    def _segments(self, number: int) -> str:
        picture = self.batch[number]
        if "instances" not in picture or not 1 < len(picture["instances"]) <= MOST_SEGMENTS:
            return ""
        segments = picture["instances"]
        bad = [
            k for k in range(len(segments)) if self.run([{**picture, "instances": segments[k]}]).is_failure
        ]
        if not bad or len(bad) == len(segments):
            return ""
        classes = segments.gt_classes.tolist()
        return ": " + ", ".join(f"segment {k} (class {classes[k]})" for k in bad[:10])


def report(replay: Replay) -> tuple[list[str], bool]:
    """Return lines about a step that is run again, and whether it failed again."""
    failure = replay.failure
    lines = [
        f"recorded: {str(failure['error']).partition(chr(10))[0][:200]}",
        f"iteration {failure['iteration']}, process {failure['rank']} of {failure['processes']}, weights "
        f"{failure['moment']}, {', '.join(f'{name} {value}' for name, value in replay.versions.items())}",
    ]
    outcome = replay.run()
    if outcome.error is not None:
        lines.append(
            f"raised again: {type(outcome.error).__name__}: {str(outcome.error).splitlines()[0][:200]}"
        )
    lines += [f"loss: {name} {value:.4g}" for name, value in outcome.losses.items()]
    lines.append(f"first output that is not finite: {outcome.output or 'none'}")
    lines.append(f"first gradient that is not finite: {outcome.gradient or 'none'}")
    if outcome.is_failure:
        lines += replay.culprits() or ["no picture alone is behind it: look at the weights and the precision"]
    else:
        lines.append("the step ends well here: look at the device, its precision, or the other processes")
    return lines, outcome.is_failure


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mask_former.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="the record of a failed step")
    parser.add_argument("--device", default="cpu", help="to run on (%(default)s)")
    parser.add_argument("--float32", action="store_true", help="instead of the precision that is recorded")
    import_help = "Python module to import first, as train_net.py's"
    parser.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE", help=import_help
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        for module in arguments.imports:
            importlib.import_module(module)
        lines, is_failure = report(Replay(arguments.file, arguments.device, arguments.float32))
    except (ValueError, KeyError, OSError, ImportError, RuntimeError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if is_failure else 1


if __name__ == "__main__":
    sys.exit(main())
