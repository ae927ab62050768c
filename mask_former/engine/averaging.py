"""Moving average of the weights (SOLVER.EMA_DECAY): kept, saved, resumed and evaluated."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.evaluator import inference_context
from torch import Tensor, nn

from mask_former.inference.ruled_model import unwrapped


class WeightAverage(HookBase):
    """Keeps an exponential moving average of all that training changes in a model.

    In the first steps, the decay is (1 + step) / (10 + step): the average has to forget the initial weights.
    Files hold the average as the model, and the trained weights in the state of this hook.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(
                f"SOLVER.EMA_DECAY is {decay}, expected 0 (no average) to below 1, such as 0.999."
            )
        self.model = unwrapped(model)
        self.decay = decay
        self.average: dict[str, Tensor] = {}

    def _trained(self) -> dict[str, Tensor]:
        """Return what training changes: parameters that learn, and running statistics."""
        fixed = {name for name, value in self.model.named_parameters() if not value.requires_grad}
        entries = self.model.state_dict().items()
        return {name: v for name, v in entries if name not in fixed and v.is_floating_point()}

    def before_train(self) -> None:
        """Begin with the weights of the model, unless the run is resumed with an average."""
        if not self.average:
            self.average = {name: value.clone() for name, value in self._trained().items()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the average towards the weights."""
        step = self.trainer.iter + 1
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        trained = self._trained()
        torch._foreach_lerp_([self.average[name] for name in trained], list(trained.values()), weight)

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self._trained().items():
            kept = value.clone()
            value.copy_(self.average[name])
            self.average[name].copy_(kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the average, and the average the trained weights."""
        if self.average:
            self._swap()
        try:
            yield
        finally:
            if self.average:
                self._swap()

    def averaged_model(self) -> nn.Module:
        """Return a copy of the model with the averaged weights."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.average, strict=False)
        return model

    def state_dict(self) -> dict[str, Any]:
        """Return what lies beside the model in a file: within `applied`, the trained weights."""
        return {"weights": dict(self.average)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore both from a file that `applied` was in effect for; the model has the file's weights."""
        weights, trained = state_dict["weights"], self._trained()
        if weights.keys() != trained.keys():
            odd = sorted(weights.keys() ^ trained.keys())
            raise ValueError(
                f"The average of the weights was kept of other entries than this run trains ({odd[0]} and "
                f"{len(odd) - 1} more): resume with the MODEL.BACKBONE.FREEZE that the run began with."
            )
        self.average = {name: weights[name].to(value, copy=True) for name, value in trained.items()}
        self._swap()


class BothEvaluator(DatasetEvaluator):
    """Scores a second model on the pictures of the first, as rows of their own (`_raw`)."""

    def __init__(self, first: DatasetEvaluator, second: DatasetEvaluator, second_model: nn.Module) -> None:
        self._evaluators = [first, second]
        self.second_model = second_model

    def reset(self) -> None:
        """Begin anew."""
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        """Take the results of the first model, and those of the second for the same pictures."""
        first, second = self._evaluators
        first.process(inputs, outputs)
        with inference_context(self.second_model):
            second.process(inputs, self.second_model(inputs))

    def evaluate(self) -> dict[str, Any]:
        """Return the scores of both."""
        first, second = (evaluator.evaluate() or {} for evaluator in self._evaluators)
        return {**first, **{f"{task}_raw": scores for task, scores in second.items()}}
