"""What was measured, as text or as Markdown for a README."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, aligned so that it reads as plain text, too."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def report(results: Mapping[str, Any]) -> str:
    """Return tables of all that was measured."""
    parts = [_heading(results)]
    if "variants" in results:
        parts.append(_stages(results["variants"]))
    if results.get("pictures_per_second"):
        rates = [[name, f"{rate:.2f}"] for name, rate in results["pictures_per_second"].items()]
        parts.append(table(["variant", "pictures a second"], rates))
    if results.get("ratios"):
        parts.append(_ratios(results["ratios"]))
    if results.get("peak_memory_mib"):
        rows = [[name, _whole(value)] for name, value in results["peak_memory_mib"].items()]
        parts.append(table(["variant, alone in a process", "peak memory, MiB"], rows))
    if "evaluation" in results:
        found = results["evaluation"]
        row = [str(found["pictures"]), *(f"{found[key]:.2f}" for key in ("whole_s", "network_s", "ratio"))]
        parts.append(table(["pictures", "evaluation, s", "network alone, s", "ratio"], [row]))
    if "models" in results:
        parts.append(_models(results["models"]))
    if "data" in results:
        parts += _data(results["data"])
    return "\n\n".join(parts) + "\n"


def _models(models: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a model: its size, and for each way to run it time and memory."""
    variants = list(next(iter(models.values()))["variants"])
    header = ["model", "parameters, M", "multiply-adds, G"]
    header += [f"{variant}, {what}" for variant in variants for what in ("ms", "MiB")]
    rows = []
    for name, found in models.items():
        row = [name, *(f"{found['model'][key]:.1f}" for key in ("parameters_million", "multiply_adds_1e9"))]
        for variant in variants:
            row.append(f"{found['variants'][variant]['all']['median_ms']:.0f}")
            row.append(_whole(found["peak_memory_mib"][variant]))
        rows.append(row)
    return table(header, rows)


def _data(found: Mapping[str, Any]) -> list[str]:
    ours, plain = found["mapper"]["ours"], found["mapper"]["plain"]
    pairs = [one / other for one, other in zip(ours, plain, strict=True)]
    rows = [[name, f"{median(rates):.1f}"] for name, rates in found["mapper"].items()]
    loaders = [[str(workers), f"{rate:.1f}"] for workers, rate in found["loader"].items()]
    return [
        table(["mapper on one core", "samples a second, median"], rows),
        _ratios({"samples a second, ours / plain": {"median": median(pairs), "pairs": pairs}}),
        table(["workers of the loader", "samples a second"], loaders),
    ]


def _whole(value: float | None) -> str:
    return "failed" if value is None else f"{value:.0f}"


def _heading(results: Mapping[str, Any]) -> str:
    items = {**results["setting"], **results.get("model", {}), **results["machine"]}
    return ", ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in items.items())


def _short(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _stages(variants: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    stages = list(dict.fromkeys(stage for found in variants.values() for stage in found))
    rows = []
    for name, found in variants.items():
        cells = [
            f"{found[stage]['median_ms']:.1f} / {found[stage]['p95_ms']:.1f}" if stage in found else ""
            for stage in stages
        ]
        rows.append([name, *cells])
    return table(["median / p95 in ms", *stages], rows)


def _ratios(ratios: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [name, f"{found['median']:.3f}", f"{min(found['pairs']):.3f} to {max(found['pairs']):.3f}"]
        for name, found in ratios.items()
    ]
    return table(["ratio, pair by pair", "median", "range"], rows)
