"""Write one page about a run: scores, curves, pictures, video.

    python demo/run_page.py OUTPUT_DIR

The page (index.html in that folder) is one file without scripts that refers to no other file, so it opens
from disk and can be mailed. It shows what it finds in the folder:

    metrics.json                                   losses and scores, as training and evaluation write them
    config.yaml                                    the configuration
    gallery/NAME_{picture,truth,prediction}.png    rows of pictures; any of the three may be missing
    samples/                                       pictures that evaluation has drawn
    *.mp4, *.avi, *.mkv, *.mov                     videos, shown as animated pictures
"""

import argparse
import base64
import io
import json
import logging
import math
import string
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from mask_former.formats import replacing
from mask_former.prediction.video import VIDEO_SUFFIXES, VideoReader

logger = logging.getLogger("mask_former.demo")

PAGE = "index.html"
TEMPLATE = Path(__file__).with_suffix(".html")
PANELS = ("picture", "truth", "prediction")
# Largest side of what is shown, in pixels.
PICTURE_SIDE = 420
MOST_ROWS = 24
# Of a longer video only every n-th frame is shown, so that there are about this many.
VIDEO_FRAMES_SHOWN = 48
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Scores at the top of the page: key in metrics.json -> name and meaning.
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
# Title of a chart -> key in metrics.json -> name of the curve.
CURVES = {
    "Total loss": {"total_loss": "total"},
    "Losses of the last layer": {"loss_ce": "class", "loss_mask": "mask", "loss_dice": "dice"},
    "Learning rate": {"lr": "rate"},
    "Scores": {"panoptic_seg/PQ": "PQ", "sem_seg/mIoU": "mIoU", "segm/AP": "mask AP"},
}
# Readable on the light and on the dark page.
CHART_STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "legend.labelcolor"), "#7c8698"),
    **dict.fromkeys(("xtick.color", "ytick.color"), "#7c8698"),
    **{"grid.color": "#7c8698", "grid.alpha": 0.25, "axes.grid": True, "legend.frameon": False},
    **{"axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"},
}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the records of a metrics.json by iteration; a broken last line is skipped with a warning."""
    records: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
            iteration = int(record["iteration"])
        except (ValueError, KeyError, TypeError):
            logger.warning("%s: skipping a line that is not a record of metrics: %.40s", path, line)
            continue
        records[iteration] = {**records.get(iteration, {}), **record}
    return [records[iteration] for iteration in sorted(records)]


def latest_scores(records: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the last finite value of each score, by its name "task/score"."""
    scores: dict[str, float] = {}
    for record in records:
        scores |= {k: v for k, v in record.items() if "/" in k and isinstance(v, float) and math.isfinite(v)}
    return scores


def write_page(folder: str | Path) -> Path:
    """Write the page about a run into its folder, and return its path."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder, expected the OUTPUT_DIR of a run.")
    records = read_metrics(folder / "metrics.json")
    scores = latest_scores(records)
    sections = {
        "Scores": _tiles(scores),
        "Classes": _class_table(scores),
        "Curves": _grid(_chart(title, metrics, records) for title, metrics in CURVES.items()),
        "Pictures": _gallery(folder / "gallery") or _samples(folder / "samples"),
        "Video": _grid(_animation(p) for p in sorted(folder.iterdir()) if p.suffix.lower() in VIDEO_SUFFIXES),
    }
    body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections.items() if content)
    if not body:
        raise ValueError(
            f"{folder} holds nothing to show: expected metrics.json, gallery/, samples/ or a video of a run. "
            "Give the OUTPUT_DIR of a training or of `make demo`."
        )
    template = string.Template(TEMPLATE.read_text())
    title = escape(f"{folder.resolve().name}: MaskFormer")
    page = folder / PAGE
    with replacing(page) as partial:
        summary = _summary(folder / "config.yaml", records)
        partial.write_text(template.substitute(title=title, summary=summary, body=body), encoding="utf-8")
    return page


def _summary(config_file: Path, records: Sequence[Mapping[str, float]]) -> str:
    """Return one line about model, data and length of the run."""
    try:
        config = yaml.safe_load(config_file.read_text()) or {}
    except (OSError, yaml.YAMLError):
        config = {}
    model, solver = config.get("MODEL", {}), config.get("SOLVER", {})
    facts = []
    if "SEM_SEG_HEAD" in model:
        facts.append(f"{model['META_ARCHITECTURE']}, {model['SEM_SEG_HEAD']['NUM_CLASSES']} classes")
    if "DATASETS" in config:
        facts.append(f"trained on {', '.join(config['DATASETS']['TRAIN'])}")
    steps = [int(record["iteration"]) for record in records if "total_loss" in record]
    if steps and "MAX_ITER" in solver:
        batch = solver["IMS_PER_BATCH"]
        facts.append(f"{steps[-1] + 1} of {solver['MAX_ITER']} iterations of {batch} pictures")
    return f"<p>{escape('; '.join(facts))}</p>" if facts else ""


def _tiles(scores: Mapping[str, float]) -> str:
    tiles = [
        f'<div class="tile"><b>{scores[key]:.1f}</b>{name} <span class="dim">{meaning}</span></div>'
        for key, (name, meaning) in HEADLINES.items()
        if key in scores
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _class_table(scores: Mapping[str, float]) -> str:
    """Return a row for each class, the best first; folded if there are many."""
    of_class = [
        tuple(key.split("-", 1)) for key in scores if key.split("-", 1)[0] in CLASS_COLUMNS and "-" in key
    ]
    columns = [key for key in CLASS_COLUMNS if any(key == column for column, _ in of_class)]
    if not columns:
        return ""
    rows = []
    names = dict.fromkeys(name for _, name in of_class)
    for name in sorted(names, key=lambda name: -scores.get(f"{columns[0]}-{name}", -1.0)):
        cells = [f"{scores[f'{key}-{name}']:.1f}" if f"{key}-{name}" in scores else "" for key in columns]
        cells[0] += f'<meter min="0" max="100" value="{cells[0]}"></meter>' if cells[0] else ""
        rows.append("".join(f"<td>{cell}</td>" for cell in (escape(name), *cells)))
    heads = "".join(f"<th>{head}</th>" for head in ("class", *(CLASS_COLUMNS[key] for key in columns)))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    is_long = len(rows) > MOST_ROWS
    return f"<details><summary>{len(rows)} classes</summary>{table}</details>" if is_long else table


def curve_figure(metrics: Mapping[str, str], records: Sequence[Mapping[str, float]]) -> Figure | None:
    """Return a chart of metrics (key -> name of the curve) over iterations, None without finite values."""
    with rc_context(CHART_STYLE):
        figure = Figure(figsize=(5.2, 2.4), layout="constrained")
        axes = figure.add_subplot(xlabel="iteration")
        for key, name in metrics.items():
            points = [(r["iteration"], r[key]) for r in records if key in r and math.isfinite(r[key])]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) == 1 else "")
        if not axes.lines:
            return None
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        if len(axes.lines) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0)
        return figure


def _chart(title: str, metrics: Mapping[str, str], records: Sequence[Mapping[str, float]]) -> str:
    figure, buffer = curve_figure(metrics, records), io.BytesIO()
    if figure is None:
        return ""
    with rc_context(CHART_STYLE):
        figure.savefig(buffer, format="svg", transparent=True)
    return _figure(buffer.getvalue(), "svg+xml", title)


def _gallery(folder: Path) -> str:
    """Return rows of picture, truth and prediction, by the names of the files."""
    rows: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*")):
        name, _, panel = path.stem.rpartition("_")
        if panel in PANELS and path.suffix.lower() in PICTURE_SUFFIXES:
            rows.setdefault(name, {})[panel] = path
    return "".join(
        f'<div class="row">{"".join(_picture(row[panel], panel) for panel in PANELS if panel in row)}</div>'
        for row in list(rows.values())[:MOST_ROWS]
    )


def _samples(folder: Path) -> str:
    """Return the pictures of a folder, each by itself."""
    pictures = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PICTURE_SUFFIXES]
    return "".join(_picture(path, path.stem, 3 * PICTURE_SIDE) for path in pictures[-MOST_ROWS:])


def _picture(path: Path, caption: str, side: int = PICTURE_SIDE) -> str:
    with Image.open(path) as picture:
        shown = picture.convert("RGB")
    shown.thumbnail((side, side))
    return _figure(_webp(shown, quality=85), "webp", caption)


def _animation(path: Path) -> str:
    """Return a video as an animated picture, which browsers show whatever the video's codec."""
    try:
        with VideoReader(path) as video:
            step = max(1, math.ceil(video.frames / VIDEO_FRAMES_SHOWN))
            frames = [Image.fromarray(frame) for number, frame in enumerate(video) if number % step == 0]
    except ValueError as error:
        logger.warning("%s It is left out of the page.", error)
        return ""
    frames = frames[: 2 * VIDEO_FRAMES_SHOWN]  # of a file that does not state its number of frames
    for frame in frames:
        frame.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    pause = round(1000 * step / video.rate)
    data = _webp(frames[0], save_all=True, append_images=frames[1:], duration=pause, loop=0)
    return _figure(data, "webp", f"{path.name}: {video.frames} frames at {video.rate:g} per second")


def _webp(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", **options)
    return buffer.getvalue()


def _figure(data: bytes, form: str, caption: str) -> str:
    source = f"data:image/{form};base64,{base64.b64encode(data).decode('ascii')}"
    text = escape(caption, quote=True)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _grid(figures: Iterable[str]) -> str:
    content = "".join(figures)
    return f'<div class="wide">{content}</div>' if content else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page that a command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="OUTPUT_DIR", help="folder of a run")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        page = write_page(arguments.folder)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{page}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
