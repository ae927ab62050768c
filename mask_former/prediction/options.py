"""The options of a predictor, as rules for its results; and names of options that do not exist."""

import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from mask_former.inference import TASKS, ResultRules
from mask_former.prediction.classes import ClassTable


def option_names(function: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments that have a default value."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.default is not parameter.empty]


def refuse_unknown(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise TypeError, with the nearest name, if an option given to `what` is not known."""
    known = list(known)
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}."
            raise TypeError(f"{what} has no option {name!r}; {hint}")


def rules_with_options(
    rules: ResultRules,
    classes: ClassTable,
    *,
    score_threshold: float | None = None,
    mask_threshold: float = 0.5,
    overlap_threshold: float | None = None,
    top_k: int | None = None,
    classes_to_keep: Collection[str | int] | None = None,
    tasks: Collection[str] | None = None,
) -> ResultRules:
    """Return the rules of a model with the options of `Predictor.from_checkpoint`; None keeps the model's."""
    _check_thresholds(score_threshold, mask_threshold, overlap_threshold, top_k)
    given: dict[str, Any] = {
        "object_mask_threshold": score_threshold,
        "instance_score_threshold": score_threshold,
        "overlap_threshold": overlap_threshold,
        "top_k": top_k,
        "kept_classes": None if classes_to_keep is None else classes.indices_of(classes_to_keep),
    }
    return replace(
        _with_tasks(rules, tasks, classes),
        semantic_form="labels",
        mask_threshold=mask_threshold,
        **{name: value for name, value in given.items() if value is not None},
    )


def _with_tasks(rules: ResultRules, tasks: Collection[str] | None, classes: ClassTable) -> ResultRules:
    """Return rules with other tasks, and with the things of the classes where the model knows none."""
    if tasks is not None:
        tasks = [tasks] if isinstance(tasks, str) else list(tasks)
        if not tasks or not set(tasks) <= set(TASKS):
            raise ValueError(f"Tasks are {tasks}; choose one or more of {', '.join(TASKS)}.")
        rules = replace(rules, tasks=tuple(task for task in TASKS if task in tasks))
    if rules.thing_ids is None and (classes.things or "panoptic" in rules.tasks):
        rules = replace(rules, thing_ids=classes.things)
    return rules


def _check_thresholds(
    score_threshold: float | None, mask_threshold: float, overlap_threshold: float | None, top_k: int | None
) -> None:
    for name, value in (("score_threshold", score_threshold), ("overlap_threshold", overlap_threshold)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it must be in 0..1.")
    if not 0 < mask_threshold < 1:
        raise ValueError(f"mask_threshold is {mask_threshold}; it must lie between 0 and 1.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1.")
