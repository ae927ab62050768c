"""Fit the entries of a weight file to a model, and report what did not fit, why, and what to do."""

import logging
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from torch import Tensor, nn

from mask_former.checkpoint.description import class_names_of
from mask_former.modeling.head import old_names

logger = logging.getLogger(__name__)

# A file of backbone weights names its entries without, or with, the path of the backbone in a model.
PREFIXES = ("", "backbone.", "backbone.bottom_up.", "backbone.net.")
HEAD, PIXEL_DECODER = "sem_seg_head.", "sem_seg_head.pixel_decoder."
# Entries that the model computes by itself: neither having nor missing them is reported.
COMPUTED = re.compile(
    r"(^|\.)(criterion\.empty_weight|pixel_mean|pixel_std|num_batches_tracked|attn_mask"
    r"|relative_position_index|relative_coords_table)$"
)
# The image classifier at the end of a backbone's pre-training.
CLASSIFIER = re.compile(r"^(stem\.fc|fc|head|head\.fc|norm|classifier|pred)\.(weight|bias)$|^fc1000_[bw]$")
CLASS_ROWS = re.compile(r"(^|\.)predictor\.(class_embed\.)?(weight|bias)$")
QUERIES = re.compile(r"(^|\.)predictor\.query_embed\.weight$")
# What to do about entries that did not load.
NOTHING = "Nothing to do."
TRAIN = "Train them, or give the config that the file was made with."
TRAIN_ON = "Train on to fit them."
UNFREEZE = (
    "They would keep random values: set MODEL.BACKBONE.FREEZE none, MODEL.BACKBONE.FREEZE_AT 0 and "
    "MODEL.SWIN.FROZEN_STAGES -1."
)


# The fate of an entry, "re-initialised", "adapted" or "unused"; why; and what to do.
Note = tuple[str, str, str]
UNNEEDED: Note = ("unused", "classifier of the pre-training, not needed", NOTHING)
UNKNOWN = ("unused", "no such name in the model", "Give the config that the file was made with (MODEL.*).")


class Group(NamedTuple):
    """The entries with one `Note`."""

    fate: str
    why: str
    action: str
    names: tuple[str, ...]

    @property
    def is_fault(self) -> bool:
        """Whether the model lacks something of the file, or the file something of the model."""
        return self.action != NOTHING

    def __str__(self) -> str:
        return f"{self.fate}: {_summary(self.names)} - {self.why}. {self.action}"


class LoadReport(NamedTuple):
    """The result of loading a weight file.

    source: the file.
    loaded: number of entries of the model that hold the file's values, adapted ones included.
    expected: number of entries of the model.
    groups: the other entries that are worth reporting.
    renamed: number of entries that had the names of an early release.
    prefix: what was put before the file's names, for files that hold a backbone alone.
    remark: how such a file was converted, and the licence of its weights.
    """

    source: str
    loaded: int
    expected: int
    groups: tuple[Group, ...] = ()
    renamed: int = 0
    prefix: str = ""
    remark: str = ""

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
        notes += [self.remark] if self.remark else []
        note = f" ({', '.join(notes)})" if notes else ""
        first = f"{self.source}: {self.loaded} of {self.expected} entries loaded{note}"
        fates = dict.fromkeys(group.fate for group in self.groups)
        first = "; ".join([first, *(f"{len(self.named(fate))} {fate}" for fate in fates)])
        return "\n".join([first, *(f"  {group}" for group in self.groups)])


def load_weights(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    source: str,
    *,
    class_names: Sequence[str] | None = None,
    match_class_names: bool = False,
    strict: bool = False,
) -> LoadReport:
    """Load the weights of a checkpoint into a model, and log and return the report.

    Args:
        model: is changed.
        checkpoint: as `read_checkpoint` returns it.
        source: what the report calls the file.
        class_names: of the model's classes, if known.
        match_class_names: carry classifier rows over by class name, as training on other classes wants it;
            otherwise they are loaded as they are, and a difference of names is one warning.
        strict: raise ValueError unless the model then holds the file's weights, all of them.
    """
    file_classes = class_names_of(checkpoint.get("metadata", {}))
    names = (file_classes, class_names) if match_class_names else (None, None)
    fitted, report = fit_weights(checkpoint["model"], model, source, *names)
    if strict and not report.is_complete:
        raise ValueError(
            f"Not every entry fits, and loading is strict (leave out --strict to accept).\n{report}"
        )
    model.load_state_dict(fitted, strict=False)
    logger.log(logging.INFO if report.is_complete else logging.WARNING, "%s", report)
    if not match_class_names and file_classes and class_names and file_classes != list(class_names):
        logger.warning(
            "%s names its classes %s, the data set %s: the weights are used as they are, by index.",
            source, _listing(file_classes), _listing(class_names),
        )  # fmt: skip
    return report


def current_names(state: Mapping[str, Tensor], own: Collection[str] = ()) -> dict[str, Tensor]:
    """Return a state dict under the names of today's models, whatever its origin.

    Renamed are names with the prefix of DistributedDataParallel, those of Caffe2 (without dots: other
    libraries' names may end in _w, too), and those of early MaskFormer releases.

    Args:
        state: name -> tensor, as a file has them.
        own: names of the model that will load them, which are never changed.
    """
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    if any(name.endswith(("_bn_s", "_w")) for name in state) and not any("." in name for name in state):
        blobs = {name: value for name, value in state.items() if not name.endswith("_momentum")}
        state, _ = convert_c2_detectron_names(blobs)
    renamed = old_names(state, HEAD)
    return {name if name in own else renamed.get(name, name): value for name, value in state.items()}


def fit_weights(
    state: Mapping[str, Tensor],
    model: nn.Module,
    source: str,
    file_classes: Sequence[str] | None = None,
    model_classes: Sequence[str] | None = None,
) -> tuple["OrderedDict[str, Tensor]", LoadReport]:
    """Return what of `state` the model can load, under its own names and in its shapes, and the report.

    Args:
        state: name -> tensor, as a file has them.
        model: will load them; it is not changed.
        source: what the report calls the file.
        file_classes: the names of the file's classes, to carry classifier rows over by name; None: by index.
        model_classes: the names of the model's classes.
    """
    own = model.state_dict()
    named, remark = current_names(state, own), ""
    convert: Any = getattr(getattr(model, "backbone", None), "convert_weights", None)
    if convert and not any(name in own for name in named):
        named, remark = convert(named)
    # One prefix for all names: matched one by one by their ends, a classifier's `norm.weight` would go into
    # any norm of its shape.
    prefix = max(PREFIXES, key=lambda prefix: sum(f"{prefix}{name}" in own for name in named))
    named = {f"{prefix}{name}": value for name, value in named.items()}
    fitted: OrderedDict[str, Tensor] = OrderedDict()
    if not prefix and hasattr(state, "_metadata"):  # versions of modules
        fitted._metadata = state._metadata  # type: ignore[attr-defined]
    notes: list[tuple[str, Note | None]] = []
    for name in [name for name in own if name in named]:
        value, note = _fit(name, named[name], own, file_classes or (), model_classes or ())
        notes.append((name, note))
        if value is not None:
            fitted[name] = value
    if not fitted:
        raise ValueError(
            f"{source}: none of its {len(state)} entries fits the model. It has {_summary(list(state))}; the "
            f"model has {_summary(list(own))}. Give the config of the model that the file was made for, or "
            "convert the file: python -m mask_former.convert."
        )
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    has_head = any(name.startswith(HEAD) for name in named)
    missing = [name for name in own if name not in named]
    notes += [(name, _note_missing(name, name in frozen, has_head, prefix)) for name in missing]
    unused = [name.removeprefix(prefix) for name in named if name not in own]
    notes += [(name, UNNEEDED if CLASSIFIER.search(name) else UNKNOWN) for name in unused]
    groups: dict[Note, list[str]] = {}
    for name, note in notes:
        if note and not COMPUTED.search(name):
            groups.setdefault(note, []).append(name)
    renamed = sum(name not in state and name.startswith(PIXEL_DECODER) for name in named) if not prefix else 0
    report = tuple(Group(*note, tuple(names)) for note, names in groups.items())
    return fitted, LoadReport(source, len(fitted), len(own), report, renamed, prefix, remark)


def _note_missing(name: str, is_frozen: bool, has_head: bool, prefix: str) -> Note:
    if is_frozen:
        return ("re-initialised", "not in the file, and frozen by the config", UNFREEZE)
    if not has_head and not name.startswith(prefix or "backbone."):
        action = "Train the head; that is how training starts."
        return ("re-initialised", "the file holds a backbone alone", action)
    return ("re-initialised", "not in the file", TRAIN)


def _fit(
    name: str, value: Tensor, own: Mapping[str, Tensor], *classes: Sequence[str]
) -> tuple[Tensor | None, Note | None]:
    """Return the value for the model's entry of this name, None if it cannot be made to fit, and a note.

    Args:
        name: in the model.
        value: of the file.
        own: entries of the model.
        classes: class names of the file, and of the model; empty to load class rows by index.
    """
    mine = own[name]
    is_query = bool(QUERIES.search(name))
    # Without a classifier, query k is class k (per_pixel.py).
    is_row = CLASS_ROWS.search(name) or (is_query and not any("predictor.class_embed." in key for key in own))
    if COMPUTED.search(name):
        # A counter is the file's; what follows from the model's sizes is the model's.
        return value if name.endswith("num_batches_tracked") else mine, None
    why = f"shape {tuple(value.shape)} in the file, {tuple(mine.shape)} in the model"
    is_float, is_same_row = value.is_floating_point(), value.shape[1:] == mine.shape[1:]
    if is_float != mine.is_floating_point():
        why = f"type {value.dtype} in the file, {mine.dtype} in the model"
    elif is_row and is_same_row and all(classes) and (rows := _rows_by_name(name, value, mine, *classes)):
        return rows
    elif value.shape == mine.shape:
        return value, None
    elif is_row and is_same_row:
        why = f"{len(value)} class rows in the file, {len(mine)} in the model"
        why += ", and the class names of one side are not known"
    elif is_query and is_same_row:
        why = f"{len(value)} queries in the file, {len(mine)} in the model: the first are kept"
        common = min(len(value), len(mine))
        return torch.cat([value[:common].to(mine), mine[common:]]), ("adapted", why, TRAIN_ON)
    elif (table := _resized_table(name, value, mine)) is not None:
        note = ("adapted", "another window or picture size: position tables are resized", TRAIN_ON)
        return table, note
    return None, ("re-initialised", why, TRAIN)


def _rows_by_name(
    name: str, value: Tensor, own: Tensor, old: Sequence[str], new: Sequence[str]
) -> tuple[Tensor, Note] | None:
    """Return the model's class rows with those of the file that have its name, None if not possible."""
    extra = 1 if "class_embed." in name else 0  # the last row is "no object"
    if list(old) == list(new) or len(set(old)) < len(old):
        return None
    if len(value) != len(old) + extra or len(own) != len(new) + extra:
        return None
    rows = own.clone()
    added = [label for label in new if label not in old]
    for row, label in enumerate(new):
        if label in old:
            rows[row] = value[old.index(label)]
    if extra:
        rows[-1] = value[-1]
    why = (
        f"another class list: the rows of {len(new) - len(added)} classes are carried over by name, "
        f"those of {len(added)} are new" + (f" ({_listing(added)})" if added else "")
    )
    return rows, ("adapted", why, TRAIN_ON)


def _resized_table(name: str, value: Tensor, own: Tensor) -> Tensor | None:
    """Return Swin's position table for another window or picture size, None if it is none."""
    if name.endswith("relative_position_bias_table") and value.shape[1:] == own.shape[1:]:
        is_square = all(round(len(table) ** 0.5) ** 2 == len(table) > 0 for table in (value, own))
        return resized_bias_table(value, len(own)) if is_square and value.ndim == 2 else None
    if name.endswith("absolute_pos_embed") and value.ndim == 4 and value.shape[:2] == own.shape[:2]:
        return F.interpolate(value.float(), size=own.shape[-2:], mode="bicubic", align_corners=False)
    return None


def resized_bias_table(table: Tensor, rows: int) -> Tensor:
    """Return a Swin position table ((2w-1)^2, heads) for another window, (rows, heads), resized."""
    old, new = round(len(table) ** 0.5), round(rows**0.5)
    square = table.float().t().reshape(1, -1, old, old)
    resized = F.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    return resized.reshape(-1, rows).t().contiguous().to(table.dtype)


def _summary(names: Sequence[str]) -> str:
    """Return how many entries there are, and under which modules."""
    if len(names) <= 3:
        return ", ".join(names)
    parents = dict.fromkeys(
        ".".join(name.split(".")[: 3 if name.startswith(HEAD) else 2]) + ".*" for name in names
    )
    return f"{len(names)} entries ({_listing(list(parents))})"


def _listing(items: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
