"""Fits the entries of a weight file to a model, and reports what did not fit, why, and what to do."""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A file of backbone weights names its entries without, or with, the path of the backbone in a model.
PREFIXES = ("", "backbone.", "backbone.bottom_up.")
# What the model works out by itself, so that neither having it nor missing it is worth a word.
COMPUTED = re.compile(
    r"(^|\.)(criterion\.empty_weight|pixel_mean|pixel_std|num_batches_tracked|attn_mask"
    r"|relative_position_index|relative_coords_table)$"
)
# What classifies pictures at the end of a backbone's pre-training.
CLASSIFIER = re.compile(r"^(stem\.fc|fc|head|head\.fc|norm|classifier|pred)\.(weight|bias)$|^fc1000_[bw]$")
CLASS_ROWS = re.compile(r"(^|\.)predictor\.(class_embed\.)?(weight|bias)$")
QUERIES = re.compile(r"(^|\.)predictor\.query_embed\.weight$")
BIAS_TABLE = re.compile(r"(^|\.)relative_position_bias_table$")
POSITIONS = re.compile(r"(^|\.)absolute_pos_embed$")

Names = Sequence[str] | None


class Group(NamedTuple):
    """Entries that share a fate: "re-initialised", "adapted" or "unused"; why; and what to do."""

    fate: str
    names: tuple[str, ...]
    why: str
    action: str
    is_fault: bool = True

    def __str__(self) -> str:
        return f"{self.fate}: {_summary(self.names)} - {self.why}. {self.action}"


class LoadReport(NamedTuple):
    """What became of a weight file's entries and a model's.

    Fields:
        source: the file.
        loaded: entries of the model that hold the file's values, adapted ones included.
        expected: entries of the model.
        groups: those of the rest that are worth a word.
        renamed: entries that had the names of an early release.
        prefix: what was put before the file's names, for files that hold a backbone alone.
    """

    source: str
    loaded: int
    expected: int
    groups: tuple[Group, ...] = ()
    renamed: int = 0
    prefix: str = ""

    def named(self, fate: str) -> list[str]:
        """Return the entries of a fate."""
        return [name for group in self.groups if group.fate == fate for name in group.names]

    @property
    def is_complete(self) -> bool:
        """Whether the model holds the file's weights, all of them and as they are."""
        return not any(group.is_fault for group in self.groups)

    def __str__(self) -> str:
        notes = [f"{self.renamed} under their early names"] if self.renamed else []
        notes += [f"as {self.prefix}*"] if self.prefix else []
        counts = {group.fate: len(self.named(group.fate)) for group in self.groups}
        parts = [f"{count} {fate}" for fate, count in counts.items()]
        note = f" ({', '.join(notes)})" if notes else ""
        first = f"{self.source}: {self.loaded} of {self.expected} entries loaded{note}"
        return "\n".join(["; ".join([first, *parts]), *(f"  {group}" for group in self.groups)])


def fit_weights(
    state: Mapping[str, Tensor],
    model: nn.Module,
    *,
    source: str,
    file_classes: Names = None,
    model_classes: Names = None,
) -> tuple["OrderedDict[str, Tensor]", LoadReport]:
    """Return what of `state` the model can load, by its own names and in its shapes, and the report.

    Args:
        state: name -> tensor, as a file has them.
        model: what will load them; it is not changed.
        source: what the report calls the file.
        file_classes: the names of the file's classes, if known.
        model_classes: the names of the model's classes, if known.
    """
    own = model.state_dict()
    named, prefix = _with_prefix(_without_module(state), own)
    renamed = _rename(named, model)
    renamed_count = len(set(renamed) - set(named))
    fitted: OrderedDict[str, Tensor] = OrderedDict()
    metadata = getattr(state, "_metadata", None)
    if metadata is not None and not prefix:
        fitted._metadata = metadata  # type: ignore[attr-defined]
    fit = _Fit(own, renamed, file_classes, model_classes)
    for name in own:
        if name in renamed:
            fit.entry(name, fitted)
    unused = [name for name in renamed if name not in own]
    missing = [name for name in own if name not in renamed]
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    groups = [*fit.groups(), *_missing(missing, frozen, _is_backbone_only(renamed)), *_unused(unused, prefix)]
    report = LoadReport(source, len(fitted), len(own), tuple(groups), renamed_count, prefix)
    if not fitted:
        raise ValueError(
            f"{source}: none of its {len(state)} entries fits the model. It has {_summary(list(state))}; the "
            f"model has {_summary(list(own))}. Give the config of the model that the file was made for, or "
            "convert the file: python -m mask_former.convert."
        )
    return fitted, report


class _Fit:
    """Fits entries one by one and remembers what did not go smoothly."""

    def __init__(
        self,
        own: Mapping[str, Tensor],
        found: Mapping[str, Tensor],
        file_classes: Names,
        model_classes: Names,
    ) -> None:
        self.own, self.found = own, found
        self.file_classes = list(file_classes) if file_classes else None
        self.model_classes = list(model_classes) if model_classes else None
        # Without a classifier, query k is class k (per_pixel.py).
        self.queries_are_classes = not any("predictor.class_embed." in name for name in own)
        self.notes: OrderedDict[tuple[str, str, str], list[str]] = OrderedDict()

    def groups(self) -> list[Group]:
        """Return what happened, one group for each reason."""
        return [Group(fate, tuple(names), why, action) for (fate, why, action), names in self.notes.items()]

    def entry(self, name: str, fitted: dict[str, Tensor]) -> None:
        """Put the entry into `fitted` if it can be made to fit."""
        value, own = self.found[name], self.own[name]
        is_query = bool(QUERIES.search(name))
        is_row = bool(CLASS_ROWS.search(name)) or (is_query and self.queries_are_classes)
        if COMPUTED.search(name):
            # A counter is the file's; what follows from the model's sizes is the model's.
            fitted[name] = value if name.endswith("num_batches_tracked") else own
        elif value.is_floating_point() != own.is_floating_point():
            self._reinitialised(name, f"type {value.dtype} in the file, {own.dtype} in the model")
        elif is_row and self._by_name(name, value, own, fitted):
            pass
        elif value.shape == own.shape:
            fitted[name] = value
        elif is_query and not is_row and value.shape[1:] == own.shape[1:]:
            fitted[name] = _common_rows(value, own)
            self._adapted(
                name, f"{len(value)} queries in the file, {len(own)} in the model: the first are kept"
            )
        elif BIAS_TABLE.search(name) and _resizable(value, own):
            fitted[name] = resized_bias_table(value, len(own))
            self._adapted(name, "another window size: position tables are resized")
        elif POSITIONS.search(name) and value.ndim == 4 and value.shape[:2] == own.shape[:2]:
            size = own.shape[-2:]
            fitted[name] = F.interpolate(value.float(), size=size, mode="bicubic", align_corners=False)
            self._adapted(name, "another picture size in pre-training: position tables are resized")
        else:
            self._reinitialised(name, self._shape_reason(value, own, is_row))

    def _by_name(self, name: str, value: Tensor, own: Tensor, fitted: dict[str, Tensor]) -> bool:
        """Carry class rows over by class name; False where that is not possible or not needed."""
        old, new = self.file_classes, self.model_classes
        extra = 1 if "class_embed." in name else 0  # the last row is "no object"
        if old is None or new is None or old == new or len(set(old)) < len(old):
            return False
        if len(value) != len(old) + extra or len(own) != len(new) + extra or value.shape[1:] != own.shape[1:]:
            return False
        result = own.clone()
        rows = {label: row for row, label in enumerate(old)}
        kept = [(target, rows[label]) for target, label in enumerate(new) if label in rows]
        kept += [(len(new), len(old))] if extra else []
        targets, sources = (torch.tensor([pair[i] for pair in kept], dtype=torch.long) for i in (0, 1))
        result[targets] = value[sources].to(result)
        fitted[name] = result
        shared = len(kept) - extra
        new_ones = [label for label in new if label not in rows]
        self._adapted(
            name,
            f"another class list: the rows of {shared} classes are carried over by name, those of "
            f"{len(new_ones)} are new" + (f" ({_listing(new_ones)})" if new_ones else ""),
        )
        return True

    def _shape_reason(self, value: Tensor, own: Tensor, is_row: bool) -> str:
        if is_row and value.shape[1:] == own.shape[1:]:
            return (
                f"{len(value)} class rows in the file, {len(own)} in the model, and the class names of one "
                "side are not known"
            )
        return f"shape {tuple(value.shape)} in the file, {tuple(own.shape)} in the model"

    def _adapted(self, name: str, why: str) -> None:
        self._note(name, "adapted", why, "Train on to fit them.")

    def _reinitialised(self, name: str, why: str) -> None:
        self._note(name, "re-initialised", why, "Train them, or give the config that the file was made with.")

    def _note(self, name: str, fate: str, why: str, action: str) -> None:
        self.notes.setdefault((fate, why, action), []).append(name)


def resized_bias_table(table: Tensor, rows: int) -> Tensor:
    """Return a Swin position table ((2w-1)^2, heads) for another window, (rows, heads), resized."""
    old, new = _side(len(table)), _side(rows)
    square = table.float().t().reshape(1, -1, old, old)
    resized = F.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    return resized.reshape(-1, rows).t().contiguous().to(table.dtype)


def _resizable(value: Tensor, own: Tensor) -> bool:
    is_table = value.ndim == own.ndim == 2 and value.shape[1] == own.shape[1]
    return is_table and all(_side(len(table)) ** 2 == len(table) > 0 for table in (value, own))


def _side(count: int) -> int:
    return round(count**0.5)


def _common_rows(value: Tensor, own: Tensor) -> Tensor:
    result = own.clone()
    common = min(len(value), len(own))
    result[:common] = value[:common].to(result)
    return result


def _without_module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state without the prefix that wrappers for several processes put before every name."""
    wrapped = bool(state) and all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if wrapped else name: value for name, value in state.items()}


def _with_prefix(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the state under the one prefix by which most names are the model's, and that prefix.

    All names get the same one: names matched one by one by their ends put a classifier's `norm.weight`
    into whatever norm has its shape.
    """

    def fitting(prefix: str) -> int:
        return sum(f"{prefix}{name}" in own for name in state)

    best = max(PREFIXES, key=fitting)  # the first of equals
    return {f"{best}{name}": value for name, value in state.items()}, best


def _rename(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the state under the names that the model's own load hooks give (see modeling/head.py)."""
    renamed = dict(state)
    for path, module in model.named_modules():
        for hook in getattr(module, "_load_state_dict_pre_hooks", {}).values():
            hook(renamed, f"{path}." if path else "", {}, False, [], [], [])
    return renamed


def _is_backbone_only(names: Iterable[str]) -> bool:
    return not any(name.startswith("sem_seg_head.") for name in names)


def _missing(missing: list[str], frozen: set[str], backbone_only: bool) -> list[Group]:
    missing = [name for name in missing if not COMPUTED.search(name)]
    groups = []
    stuck = [name for name in missing if name in frozen]
    if stuck:
        action = (
            "They would keep random values: set MODEL.BACKBONE.FREEZE_AT 0 (or MODEL.SWIN.FROZEN_STAGES -1)."
        )
        groups.append(
            Group("re-initialised", tuple(stuck), "not in the file, and frozen by the config", action)
        )
    rest = [name for name in missing if name not in frozen]
    head = [name for name in rest if not name.startswith("backbone.")]
    if backbone_only and head:
        why = "the file holds a backbone alone"
        groups.append(
            Group("re-initialised", tuple(head), why, "Train the head; that is how training starts.")
        )
        rest = [name for name in rest if name.startswith("backbone.")]
    if rest:
        action = "Train them, or give the config that the file was made with."
        groups.append(Group("re-initialised", tuple(rest), "not in the file", action))
    return groups


def _unused(unused: list[str], prefix: str) -> list[Group]:
    unused = [name for name in unused if not COMPUTED.search(name)]
    classifier = [name for name in unused if CLASSIFIER.search(name.removeprefix(prefix))]
    groups = []
    if classifier:
        why = "classifier of the pre-training, not needed"
        groups.append(
            Group(
                "unused",
                tuple(name.removeprefix(prefix) for name in classifier),
                why,
                "Nothing to do.",
                is_fault=False,
            )
        )
    rest = [name.removeprefix(prefix) for name in unused if name not in classifier]
    if rest:
        action = "Give the config that the file was made with (MODEL.*)."
        groups.append(Group("unused", tuple(rest), "no such name in the model", action))
    return groups


def _summary(names: Sequence[str]) -> str:
    """Return how many entries there are, and where."""
    if len(names) <= 3:
        return ", ".join(names)
    parents: OrderedDict[str, int] = OrderedDict()
    for name in names:
        parts = name.split(".")
        parent = ".".join(parts[: 3 if parts[0] == "sem_seg_head" else 2])
        parents[parent] = parents.get(parent, 0) + 1
    return f"{len(names)} entries ({_listing([f'{parent}.*' for parent in parents])})"


def _listing(items: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
