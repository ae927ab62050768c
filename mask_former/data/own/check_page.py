"""The page of a check: one HTML file without scripts that refers to no other file."""

import base64
import io
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mask_former.formats import replacing

from .dataset import summary
from .label_drawing import draw_label
from .report import Report, by_kind

SHOWN, STRANGEST, LISTED = 12, 10, 20
STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --dim: #667085; --line: #e3e7ee; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --dim: #98a2b3; --line: #2c3442; --paper: #12161d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 70rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.6rem; } h2 { margin: 2.5rem 0 .75rem; font-size: 1.15rem; }
.dim, figcaption { color: var(--dim); } .stop { color: #c62828; } .ok { color: #2e7d32; }
.wide { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); }
figure { margin: 0; } figure img { display: block; width: 100%; border-radius: 6px; }
figcaption { font-size: .85rem; padding-top: .2rem; }
summary { cursor: pointer; padding: .3rem 0; } li { margin: .3rem 0; } ul { padding-left: 1.2rem; margin: 0; }
.bar { display: grid; grid-template-columns: minmax(5rem, 11rem) 1fr; gap: .6rem; align-items: center;
  border-bottom: 1px solid var(--line); padding: .25rem 0; }
.bar i { display: block; height: .55rem; border-radius: 3px; min-width: 1px; }
.bar small { color: var(--dim); display: block; line-height: 1.3; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 3px; margin-right: .4rem; }
"""


def write_check_page(report: Report, page: Path) -> None:
    """Write the page of a report."""
    dataset = report.dataset
    state = (
        '<span class="stop">Something must be mended.</span>'
        if report.stops
        else ('<span class="ok">Nothing stands in the way of a training.</span>')
    )
    left_out = f" {len(report.left_out)} pictures with faults are left out." if report.left_out else ""
    sections = {
        "Faults": _faults(report),
        "Classes": _classes(report),
        "Sizes of the pictures": _sizes(report),
        "Labels over pictures": _sheet(report),
        "The strangest files": _strangest(report),
    }
    body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections.items() if content)
    title = escape(f"Check of {dataset.folder.resolve().name}")
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f'<link rel="icon" href="data:,"><title>{title}</title><style>{STYLE}</style></head><body>'
        f'<h1>{title}</h1><p class="dim">{escape(summary(dataset))}</p><p>{state}{left_out}</p>'
        f"{body}</body></html>"
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    with replacing(page) as partial:
        partial.write_text(html, encoding="utf-8")


def _faults(report: Report) -> str:
    parts = []
    for (status, kind), alike in by_kind(report.faults).items():
        items = "".join(f"<li>{escape(str(fault))}</li>" for fault in alike[:LISTED])
        more = f'<li class="dim">and {len(alike) - LISTED} more</li>' if len(alike) > LISTED else ""
        look = ' class="stop"' if status.isupper() else ""
        is_open = " open" if status.isupper() else ""
        heading = f"<summary{look}><b>{escape(status)}</b>: {escape(kind)} ({len(alike)})</summary>"
        parts.append(f"<details{is_open}>{heading}<ul>{items}{more}</ul></details>")
    return "".join(parts) or "<p>None.</p>"


def _classes(report: Report) -> str:
    """Return a block of bars for each class: its share of pixels, pictures and segments."""
    dataset, counts = report.dataset, report.statistics
    splits = [split for split in dataset.splits if any(counts.pixels_by_class[split])]
    rows = []
    for k, (name, color) in enumerate(zip(dataset.classes, dataset.colors, strict=True)):
        bars = []
        for split in splits:
            pixels, total = counts.pixels_by_class[split][k], sum(counts.pixels_by_class[split])
            pictures, segments = counts.pictures_by_class[split][k], counts.segments_by_class[split][k]
            share = 100 * pixels / total
            text = f"{split}: {share:.2g} % of the pixels, {pictures} pictures, {segments} segments"
            bars.append(_bar(share, f"#{bytes(color).hex()}", text))
        rows.append(_row(f"{_key(color)}{escape(name)}", bars))
    void = ", ".join(f"{split} {count:,}" for split, count in counts.void_pixels.items() if count)
    note = f'<p class="dim">Pixels without a class: {void}.</p>' if void else ""
    return "".join(rows) + note if splits else ""


def _key(color: Sequence[int]) -> str:
    return f'<span class="key" style="background:#{bytes(color).hex()}"></span>'


def _bar(percent: float, color: str, text: str) -> str:
    return f'<i style="width:{percent:.2f}%;background:{color}"></i><small>{text}</small>'


def _row(name: str, bars: Iterable[str]) -> str:
    return f'<div class="bar"><span>{name}</span><div>{"".join(bars)}</div></div>'


def _sizes(report: Report) -> str:
    sizes = report.statistics.sizes
    largest = max(sizes.values(), default=1)
    rows = [
        _row(f"{width}x{height}", [_bar(100 * count / largest, "var(--dim)", f"{count} pictures")])
        for (width, height), count in list(sizes.items())[:SHOWN]
    ]
    more = f'<p class="dim">and {len(sizes) - SHOWN} more sizes</p>' if len(sizes) > SHOWN else ""
    most = report.statistics
    text = f"Most segments in a picture: {most.most_segments} ({most.most_segments_in})."
    return f'{"".join(rows)}{more}<p class="dim">{escape(text)}</p>' if rows else ""


def _sheet(report: Report) -> str:
    """Return drawings of pictures spread over all splits."""
    records = [record for split in report.dataset.splits.values() for record in split]
    numbers = np.linspace(0, len(records) - 1, min(SHOWN, len(records))).astype(int)
    chosen = [records[number] for number in numbers]
    captions = (Path(record["file_name"]).name for record in chosen)
    return _figures(zip(chosen, captions, strict=True), report)


def _strangest(report: Report) -> str:
    """Return drawings of the pictures that are farthest from the median in one of their measures."""
    records = {r["file_name"]: r for split in report.dataset.splits.values() for r in split}
    ranked = strangest(report)
    drawn = _figures(((records[name], f"{Path(name).name}: {why}") for name, why in ranked), report)
    text = (
        "Farthest from the median of all pictures in one of: size, shape, brightness, contrast, number of "
        "segments, share of void and of each class; in units of the median distance from it. At most three "
        "files by one measure."
    )
    return f'<p class="dim">{text}</p>{drawn}' if drawn else ""


def strangest(report: Report) -> list[tuple[str, str]]:
    """Return up to ten file names and the reason, the strangest first; pictures like most are left out."""
    rows = {name: _features(m, report.dataset.classes) for name, m in report.measures.items() if "size" in m}
    features = {key for row in rows.values() for key in row}
    worst: dict[str, tuple[float, str, str]] = {}
    for feature in sorted(features):
        values = {name: row.get(feature, 0.0) for name, row in rows.items()}
        median = statistics.median(values.values())
        spread = statistics.median(abs(value - median) for value in values.values())
        # Where most pictures are alike to the last digit, the largest distance serves as unit, ten times.
        unit = spread or max(abs(value - median) for value in values.values()) / 10
        for name, value in values.items():
            distance = abs(value - median) / unit if unit else 0.0
            if distance > max(3.0, worst.get(name, (0.0, "", ""))[0]):
                worst[name] = (distance, feature, f"{value:.3g}, median {median:.3g}")
    order = sorted(worst, key=lambda name: (-worst[name][0], name))
    times = Counter[str]()
    chosen = []
    for name in order:
        _, feature, text = worst[name]
        times[feature] += 1
        if times[feature] <= 3:
            chosen.append((name, f"{feature} {text}"))
    return chosen[:STRANGEST]


def _features(measure: Mapping[str, Any], classes: Sequence[str]) -> dict[str, float]:
    width, height = measure["size"]
    area = width * height
    features = {"side (root of the area)": math.sqrt(area), "width / height": width / height}
    features |= {"brightness": measure["brightness"], "contrast": measure["contrast"]}
    features["share of void"] = measure.get("void", 0) / area
    features["segments"] = sum(count for _, count in measure.get("segments", ()))
    shares = {f"share of {classes[k]}": count / area for k, count in measure.get("pixels", ())}
    return features | shares


def _figures(records: Iterable[tuple[Mapping[str, Any], str]], report: Report) -> str:
    drawn = [_figure(record, caption, report) for record, caption in records]
    return f'<div class="wide">{"".join(drawn)}</div>' if drawn else ""


def _figure(record: Mapping[str, Any], caption: str, report: Report) -> str:
    try:
        drawing = draw_label(record, report.dataset)
    except (OSError, ValueError):  # which is named among the faults
        return f"<figure><figcaption>{escape(caption)}: cannot be drawn</figcaption></figure>"
    buffer = io.BytesIO()
    drawing.save(buffer, "WEBP", quality=80)
    source = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    text = escape(caption, quote=True)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'
