"""Describe a weight file in lines of text."""

from pathlib import Path
from typing import Any

from torch import nn

from mask_former.checkpoint.fitting import fit_weights
from mask_former.checkpoint.reading import file_kind
from mask_former.conversion.backbones import describe_backbone
from mask_former.conversion.sources import TITLES, SourceWeights

FORMATS = {
    "zip": "torch archive",
    "legacy": "torch file of before version 1.6",
    "pickle": "pickle",
    "safetensors": "safetensors",
}
CLASSIFIERS = ("sem_seg_head.predictor.class_embed.bias", "sem_seg_head.predictor.bias")
QUERIES = "sem_seg_head.predictor.query_embed.weight"


def describe_source(path: Path, source: SourceWeights) -> list[str]:
    """Return lines "what: value" about a file or folder; what is not known is left out."""
    metadata = source.metadata
    size = sum(
        file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()) if file.is_file()
    )
    kind = "folder" if path.is_dir() else FORMATS[file_kind(path)]
    values = sum(value.numel() for value in source.original.values())
    rows: list[tuple[str, Any]] = [
        ("file", f"{path} ({kind}, {size / 2**20:.1f} MB)"),
        ("layout", TITLES[source.kind]),
        ("origin", source.author),
        ("entries", f"{len(source.original)} ({values:,} numbers)"),
        ("backbone", _backbone(source)),
        ("classes", _classes(source)),
        ("queries", source.state[QUERIES].shape[0] if QUERIES in source.state else ""),
        ("iteration", metadata.get("iteration")),
        ("scores", _scores(metadata.get("metrics"))),
        ("licence", metadata.get("license") or ""),
        ("config", "in the file" if metadata.get("config") or source.keys else "not in the file"),
    ]
    return [f"{name:10} {value}" for name, value in rows if value not in (None, "", {})]


def _backbone(source: SourceWeights) -> str:
    prefix = "" if source.is_backbone else "backbone."
    return describe_backbone(
        {name.removeprefix(prefix): value for name, value in source.state.items() if name.startswith(prefix)}
    ).title


def _classes(source: SourceWeights) -> str:
    counts = [
        len(source.state[name]) - ("class_embed" in name) for name in CLASSIFIERS if name in source.state
    ]
    if not counts and not source.names:
        return ""
    names = ", ".join(source.names[:6]) + (" ..." if len(source.names) > 6 else "")
    return f"{counts[0] if counts else len(source.names)} ({names or 'names not in the file'})"


def _scores(metrics: Any) -> str:
    if not isinstance(metrics, dict):
        return ""
    # A score of each class would be a wall.
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if "-" not in name)


def fit_report(source: SourceWeights, model: nn.Module, path: Path, class_names: list[str]) -> list[str]:
    """Return the lines of the report that loading the file into a model would give."""
    is_ours = source.kind in ("mask_former", "published")
    state = source.original if is_ours else source.state
    _, report = fit_weights(state, model, str(path), source.names, class_names)
    return str(report).splitlines()
