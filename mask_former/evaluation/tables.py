"""Scores as tables for the log and the terminal."""

import math
from collections.abc import Mapping, Sequence

from tabulate import tabulate

PANOPTIC_GROUPS = {"All": "", "Things": "_th", "Stuff": "_st"}


def _table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".3f", numalign="right")


def panoptic_table(scores: Mapping[str, float]) -> str:
    """Return PQ, SQ and RQ in a row each for all classes, things and stuff, as far as given."""
    rows = [
        [group, *(scores[f"{key}{suffix}"] for key in ("PQ", "SQ", "RQ"))]
        for group, suffix in PANOPTIC_GROUPS.items()
        if f"PQ{suffix}" in scores
    ]
    return _table(rows, ["", "PQ", "SQ", "RQ"])


def overall_table(scores: Mapping[str, float]) -> str:
    """Return one row of the scores over all classes."""
    overall = {key: value for key, value in scores.items() if "-" not in key}
    return _table([list(overall.values())], list(overall))


def class_table(scores: Mapping[str, float], keys: Sequence[str], names: Sequence[str]) -> str:
    """Return a row for each class that occurs, with the scores `<key>-<name>` that are given."""
    keys = [key for key in keys if all(f"{key}-{name}" in scores for name in names)]
    values = {name: [scores[f"{key}-{name}"] for key in keys] for name in names}
    rows = [[name, *row] for name, row in values.items() if not all(map(math.isnan, row))]
    return _table(rows, ["class", *keys])
