"""One page about a run: scores, curves, pictures, video.

The page is one file without scripts that refers to no other file, so it opens from disk and can be mailed.
It shows what it finds in the folder of a run:

    metrics.json                         losses and scores, as training and evaluation write them
    config.yaml                          the recipe
    gallery/NAME_{picture,truth,prediction}.png    rows of pictures; any of the three may lack
    samples/                             pictures that evaluation has drawn
    *.mp4, *.avi, *.mkv, *.mov           videos, shown as moving pictures
"""

import argparse
import base64
import io
import json
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from mask_former.demonstration.charts import line_chart
from mask_former.demonstration.video import VideoReader
from mask_former.formats import replacing

logger = logging.getLogger(__name__)

PAGE = "index.html"
PANELS = ("picture", "truth", "prediction")
# Largest side of what is shown, in pixels.
PICTURE_SIDE = 420
MOST_ROWS = 24
# Of a longer video only every n-th frame is shown, so that there are about so many.
VIDEO_FRAMES_SHOWN = 48
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Scores at the top of the page: key in metrics.json -> name, what it is.
HEADLINES = {
    "panoptic_seg/PQ": ("PQ", "panoptic quality"),
    "sem_seg/mIoU": ("mIoU", "mean intersection over union"),
    "segm/AP": ("AP", "of instance masks"),
    "panoptic_seg/SQ": ("SQ", "quality of found segments"),
    "panoptic_seg/RQ": ("RQ", "how many are found"),
}
# Columns of the table of classes: key in metrics.json before "-<class>" -> heading.
CLASS_COLUMNS = {
    "panoptic_seg/PQ": "PQ",
    "panoptic_seg/SQ": "SQ",
    "panoptic_seg/RQ": "RQ",
    "sem_seg/IoU": "IoU",
    "segm/AP": "mask AP",
}
CURVES = {
    "Total loss": {"total_loss": "total"},
    "Losses of the last layer": {"loss_ce": "class", "loss_mask": "mask", "loss_dice": "dice"},
    "Learning rate": {"lr": "rate"},
    "Scores": {"panoptic_seg/PQ": "PQ", "sem_seg/mIoU": "mIoU", "segm/AP": "mask AP"},
}
STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --dim: #667085; --line: #e3e7ee; --paper: #fff;
  --card: #f7f8fa; --mark: #1f6feb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --dim: #98a2b3; --line: #2c3442;
  --paper: #12161d; --card: #1a202a; --mark: #58a6ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 70rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.7rem; } h2 { margin: 2.5rem 0 .75rem; font-size: 1.15rem; }
p, figcaption, .dim { color: var(--dim); } p { margin: .25rem 0 0; }
.tiles, .charts, .videos { display: grid; gap: 1rem; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
.videos { grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); }
.tile, .charts figure { margin: 0; padding: .8rem 1rem; background: var(--card); border-radius: 8px;
  border: 1px solid var(--line); }
.tile b { display: block; font-size: 1.7rem; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } th { color: var(--dim); font-weight: 600; }
td meter { width: 6rem; vertical-align: middle; margin-left: .5rem; }
.row { display: grid; grid-template-columns: repeat(3, 1fr); gap: .75rem; margin: 0 0 1rem; }
figure { margin: 0; } figure img { display: block; width: 100%; height: auto; border-radius: 6px; }
figcaption { font-size: .85rem; padding-top: .2rem; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: var(--dim); }
svg .grid { stroke: var(--line); }
"""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the records of a metrics.json, in order of iteration; the later one where a run was repeated.

    A last line that an interrupted run has left half-written is passed over.
    """
    records: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
            iteration = int(record["iteration"])
        except (ValueError, KeyError, TypeError):
            logger.warning("%s: a line is no record of metrics and is passed over: %.40s", path, line)
            continue
        records[iteration] = {**records.get(iteration, {}), **record}
    return [records[iteration] for iteration in sorted(records)]


def points_of(records: Iterable[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    """Return (iteration, value) of a metric wherever it was recorded."""
    return [(record["iteration"], record[key]) for record in records if key in record]


def latest_scores(records: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the last value of each score, by "task/name"; losses are none, and NaN is no value."""
    scores: dict[str, float] = {}
    for record in records:
        scores |= {k: v for k, v in record.items() if "/" in k and isinstance(v, float) and math.isfinite(v)}
    return scores


def build_page(folder: Path) -> str:
    """Return the page about the run in `folder` as HTML."""
    records = read_metrics(folder / "metrics.json")
    scores = latest_scores(records)
    recipe = _recipe(folder / "config.yaml")
    sections = {
        "Scores": _tiles(scores),
        "Classes": _class_table(scores),
        "Curves": _charts(records),
        "Pictures": _gallery(folder / "gallery") or _samples(folder / "samples"),
        "Video": _videos(folder),
    }
    body = [f"<h2>{title}</h2>{content}" for title, content in sections.items() if content]
    if not body:
        raise ValueError(
            f"{folder} holds nothing to show: expected metrics.json, gallery/, samples/ or a video of a run. "
            "Give the OUTPUT_DIR of a training or of `make demo`."
        )
    title = f"{folder.resolve().name}: MaskFormer"
    # The policy lets a browser load nothing at all: what is missing then shows at once.
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>{_summary(recipe, records)}{''.join(body)}</body></html>\n"
    )


def write_report(folder: str | Path) -> Path:
    """Write the page about a run into its folder, and return its path."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder, expected the OUTPUT_DIR of a run.")
    page = folder / PAGE
    content = build_page(folder)
    with replacing(page) as partial:
        partial.write_text(content, encoding="utf-8")
    logger.info("The page is %s (%.1f MB)", page, page.stat().st_size / 1e6)
    return page


def _recipe(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError):
        return {}


def _summary(recipe: Mapping[str, Any], records: Sequence[Mapping[str, float]]) -> str:
    """One line on model, data and length of the run."""
    model, solver = recipe.get("MODEL", {}), recipe.get("SOLVER", {})
    facts = []
    if "SEM_SEG_HEAD" in model:
        facts.append(f"{model['META_ARCHITECTURE']}, {model['SEM_SEG_HEAD']['NUM_CLASSES']} classes")
    if "DATASETS" in recipe:
        facts.append(f"trained on {', '.join(recipe['DATASETS']['TRAIN'])}")
    steps = [int(record["iteration"]) for record in records if "total_loss" in record]
    if steps and "MAX_ITER" in solver:
        facts.append(
            f"{steps[-1] + 1} of {solver['MAX_ITER']} iterations of {solver['IMS_PER_BATCH']} pictures"
        )
    return f"<p>{escape('; '.join(facts))}</p>" if facts else ""


def _tiles(scores: Mapping[str, float]) -> str:
    tiles = [
        f'<div class="tile"><b>{scores[key]:.1f}</b>{name} <span class="dim">{meaning}</span></div>'
        for key, (name, meaning) in HEADLINES.items()
        if key in scores
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _class_table(scores: Mapping[str, float]) -> str:
    """A row for each class, the best first; folded away if there are many."""
    columns = {
        key: head for key, head in CLASS_COLUMNS.items() if any(k.startswith(f"{key}-") for k in scores)
    }
    names = dict.fromkeys(k.split("-", 1)[1] for k in scores for key in columns if k.startswith(f"{key}-"))
    if not names:
        return ""
    first = next(iter(columns))
    rows = []
    for name in sorted(names, key=lambda name: -scores.get(f"{first}-{name}", -1.0)):
        cells = [_cell(scores.get(f"{key}-{name}"), with_bar=key == first) for key in columns]
        rows.append(f"<tr><td>{escape(name)}</td>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{head}</th>" for head in ("class", *columns.values()))
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return (
        table
        if len(rows) <= MOST_ROWS
        else f"<details><summary>{len(rows)} classes</summary>{table}</details>"
    )


def _cell(value: float | None, with_bar: bool) -> str:
    if value is None:
        return "<td></td>"
    bar = f'<meter min="0" max="100" value="{value:.1f}"></meter>' if with_bar else ""
    return f"<td>{value:.1f}{bar}</td>"


def _charts(records: Sequence[Mapping[str, float]]) -> str:
    figures = []
    for title, metrics in CURVES.items():
        drawn = line_chart({name: points_of(records, key) for key, name in metrics.items()}, title)
        if drawn:
            figures.append(f"<figure>{drawn}<figcaption>{escape(title)}</figcaption></figure>")
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _gallery(folder: Path) -> str:
    """Rows of picture, truth and prediction, by the names of the files."""
    files: dict[str, dict[str, Path]] = {}
    for path in _pictures_in(folder):
        name, _, panel = path.stem.rpartition("_")
        if panel in PANELS:
            files.setdefault(name, {})[panel] = path
    rows = []
    for panels in list(files.values())[:MOST_ROWS]:
        figures = [_figure(panels[panel], panel) for panel in PANELS if panel in panels]
        rows.append(f'<div class="row">{"".join(figures)}</div>')
    return "".join(rows)


def _samples(folder: Path) -> str:
    """Every picture of a folder by itself: strips that evaluation has drawn."""
    pictures = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PICTURE_SUFFIXES]
    return "".join(_figure(path, path.stem, 3 * PICTURE_SIDE) for path in pictures[-MOST_ROWS:])


def _pictures_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)


def _figure(path: Path, caption: str, side: int = PICTURE_SIDE) -> str:
    with Image.open(path) as picture:
        shown = picture.convert("RGB")
    shown.thumbnail((side, side))
    source = _data_address(shown, "WEBP", quality=85)
    text = escape(caption, quote=True)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _videos(folder: Path) -> str:
    figures = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES):
        try:
            figures.append(_moving_picture(path))
        except ValueError as error:
            logger.warning("%s It is left out of the page.", error)
    return f'<div class="videos">{"".join(figures)}</div>' if figures else ""


def _moving_picture(path: Path) -> str:
    """A video as a picture that moves: browsers show that whatever the video's codec."""
    with VideoReader(path) as video:
        step = max(1, math.ceil(video.frames / VIDEO_FRAMES_SHOWN))
        frames = [Image.fromarray(frame) for number, frame in enumerate(video) if number % step == 0]
        rate, count = video.rate, video.frames
    frames = frames[: 2 * VIDEO_FRAMES_SHOWN]  # of a file that does not say how many it holds
    for frame in frames:
        frame.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    pause = round(1000 * step / rate)
    source = _data_address(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=pause, loop=0)
    text = escape(f"{path.name}: {count} frames at {rate:g} per second", quote=True)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _data_address(picture: Image.Image, form: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page that a command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mask_former.demonstration.report",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="OUTPUT_DIR", help="folder of a run")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        page = write_report(arguments.folder)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{page}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
