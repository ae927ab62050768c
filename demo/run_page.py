"""Write one page about a run: scores, curves, mistakes, pictures, and how it was made.

    python demo/run_page.py OUTPUT_DIR

The page (index.html in that folder) is one file without scripts that loads no other file, so it opens from
disk and can be mailed. It shows what it finds in the folder:

    metrics.json                                   losses and scores, as training and evaluation write them
    run.json, recipe.yaml or config.yaml           command, date, machine; the configuration
    gallery/NAME_{picture,truth,prediction}.png    rows of pictures; any of the three may be missing
    gallery/gallery.json                           their scores and classes; which classes are mistaken
    samples/                                       pictures that evaluation has drawn, if there is no gallery
    *.mp4, *.avi, *.mkv, *.mov                     videos, shown as animated pictures

With --pictures N the gallery is drawn anew first, by the weights of the run: N pictures of its test set.
"""

import argparse
import base64
import io
import json
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import jinja2
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from mask_former.formats import replacing
from mask_former.prediction.video import VIDEO_SUFFIXES, VideoReader

logger = logging.getLogger("mask_former.demo")

PAGE = "index.html"
TEMPLATE = Path(__file__).with_suffix(".html")
RECIPES = ("recipe.yaml", "config.yaml")
PANELS = ("picture", "truth", "prediction")
# Largest side of what is shown, in pixels.
PICTURE_SIDE = 640
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
    "Validation scores": {"panoptic_seg/PQ": "PQ", "sem_seg/mIoU": "mIoU", "segm/AP": "mask AP"},
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
    scores, gallery = latest_scores(records), _read_json(folder / "gallery" / "gallery.json") or {}
    rows = _gallery_rows(folder / "gallery", gallery)
    videos = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in VIDEO_SUFFIXES]
    shown = {
        "tiles": [(scores[key], *words) for key, words in HEADLINES.items() if key in scores],
        "charts": [chart for title, keys in CURVES.items() if (chart := _chart(title, keys, records))],
        "classes": _class_table(scores),
        "rows": rows,
        "samples": [] if rows else _samples(folder / "samples"),
        "videos": [video for path in videos if (video := _animation(path))],
    }
    if not any(shown.values()):
        raise ValueError(
            f"{folder} holds nothing to show: expected metrics.json, gallery/, samples/ or a video of a run. "
            "Give the OUTPUT_DIR of a training or of `make demo`."
        )
    template = jinja2.Template(TEMPLATE.read_text(), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    recipe = next((p for name in RECIPES if (p := folder / name).is_file()), None)
    page = folder / PAGE
    with replacing(page) as partial:
        text = template.render(
            title=f"{folder.resolve().name}: MaskFormer",
            gallery=gallery,
            names=sorted({name for row in rows for name in row["classes"]}),
            starts=[_start_facts(entry) for entry in _read_json(folder / "run.json") or []],
            recipe=recipe and (recipe.name, recipe.read_text(encoding="utf-8")),
            **_summary(folder / "config.yaml", records),
            **shown,
        )
        partial.write_text(text, encoding="utf-8")
    return page


def _summary(config_file: Path, records: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return one line about model, data and length of the run, and whether it knows drawn shapes only."""
    try:
        config = yaml.safe_load(config_file.read_text()) or {}
    except (OSError, yaml.YAMLError):
        config = {}
    model, solver = config.get("MODEL", {}), config.get("SOLVER", {})
    sets = config.get("DATASETS", {}).get("TRAIN", ())
    facts = []
    if "SEM_SEG_HEAD" in model:
        facts.append(f"{model['META_ARCHITECTURE']}, {model['SEM_SEG_HEAD']['NUM_CLASSES']} classes")
    if sets:
        facts.append(f"trained on {', '.join(sets)}")
    steps = [int(record["iteration"]) for record in records if "total_loss" in record]
    if steps and "MAX_ITER" in solver:
        batch = solver["IMS_PER_BATCH"]
        facts.append(f"{steps[-1] + 1} of {solver['MAX_ITER']} iterations of {batch} pictures")
    return {"summary": "; ".join(facts), "is_of_shapes": any(name.startswith("shapes_") for name in sets)}


def _start_facts(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return what a start of the run has recorded, see `engine.record`, for people to read."""
    seconds = entry["seconds"]
    duration = "unknown, since it was killed" if seconds is None else str(timedelta(seconds=round(seconds)))
    facts = {"command": entry["command"], "date": entry["started"], "duration": duration}
    return facts | {key: entry[key] for key in ("hardware", "version", "commit") if entry[key]}


def _class_table(scores: Mapping[str, float]) -> dict[str, Any]:
    """Return headings, and for each class, the best first, its name and its scores (None: no such score)."""
    split = [tuple(key.split("-", 1)) for key in scores if "-" in key]
    keys = [key for key in CLASS_COLUMNS if any(key == column for column, _ in split)]
    names = dict.fromkeys(name for column, name in split if column in keys)
    rows = [(name, [scores.get(f"{key}-{name}") for key in keys]) for name in names]
    rows.sort(key=lambda row: -1.0 if row[1][0] is None else row[1][0], reverse=True)
    return {"heads": [CLASS_COLUMNS[key] for key in keys], "rows": rows} if rows else {}


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


def _chart(
    title: str, metrics: Mapping[str, str], records: Sequence[Mapping[str, float]]
) -> tuple[str, str] | None:
    figure, buffer = curve_figure(metrics, records), io.BytesIO()
    if figure is None:
        return None
    with rc_context(CHART_STYLE):
        figure.savefig(buffer, format="svg", transparent=True)
    return title, _address(buffer.getvalue(), "svg+xml")


def _gallery_rows(folder: Path, gallery: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return rows of picture, truth and prediction by the names of the files, as `gallery` describes them."""
    files: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*")):
        name, _, panel = path.stem.rpartition("_")
        if panel in PANELS and path.suffix.lower() in PICTURE_SUFFIXES:
            files.setdefault(name, {})[panel] = path
    described = {row["file"]: row for row in gallery.get("rows", ())}
    return [
        {
            **{"title": name, "group": "", "score": None, "classes": []},
            **described.get(name, {}),
            "panels": [(panel, *_picture(paths[panel])) for panel in PANELS if panel in paths],
        }
        for name, paths in list(files.items())[:MOST_ROWS]
    ]


def _samples(folder: Path) -> list[tuple[str, str]]:
    """Return name and address of the pictures of a folder."""
    pictures = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PICTURE_SUFFIXES]
    return [(path.stem, _picture(path, 3 * PICTURE_SIDE)[0]) for path in pictures[-MOST_ROWS:]]


def _picture(path: Path, side: int = PICTURE_SIDE) -> tuple[str, tuple[int, int]]:
    """Return address and size of a picture, no larger than `side`."""
    with Image.open(path) as picture:
        shown = picture.convert("RGB")
    shown.thumbnail((side, side))
    return _webp(shown, quality=85), shown.size


def _animation(path: Path) -> tuple[str, str] | None:
    """Return caption and address of a video as an animated picture, which any browser shows."""
    try:
        with VideoReader(path) as video:
            step = max(1, math.ceil(video.frames / VIDEO_FRAMES_SHOWN))
            frames = [Image.fromarray(frame) for number, frame in enumerate(video) if number % step == 0]
    except ValueError as error:
        logger.warning("%s It is left out of the page.", error)
        return None
    frames = frames[: 2 * VIDEO_FRAMES_SHOWN]  # of a file that does not state its number of frames
    for frame in frames:
        frame.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    pause = round(1000 * step / video.rate)
    caption = f"{path.name}: {video.frames} frames at {video.rate:g} per second"
    return caption, _webp(frames[0], save_all=True, append_images=frames[1:], duration=pause, loop=0)


def _webp(picture: Image.Image, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", **options)
    return _address(buffer.getvalue(), "webp")


def _address(data: bytes, form: str) -> str:
    return f"data:image/{form};base64,{base64.b64encode(data).decode('ascii')}"


def _read_json(path: Path) -> Any:
    """Return the content of a file that a run has left, None without it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        logger.warning("%s is no JSON file; it is left out of the page.", path)
        return None


def _grid(figures: Iterable[str]) -> str:
    content = "".join(figures)
    return f'<div class="wide">{content}</div>' if content else ""


def _draw_gallery(folder: Path, count: int) -> None:
    from gallery import write_gallery

    from mask_former.config import load_config

    weights = [folder / name for name in ("model_best.pth", "model_final.pth") if (folder / name).is_file()]
    if not weights:
        raise FileNotFoundError(f"{folder} has no model_best.pth or model_final.pth to draw pictures with.")
    write_gallery(folder, weights[0], load_config(folder / "config.yaml"), count)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page that a command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="OUTPUT_DIR", help="folder of a run")
    pictures_help = "draw so many pictures of the test set first, with the weights of the run"
    parser.add_argument("--pictures", type=int, default=0, metavar="N", help=pictures_help)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        if arguments.pictures > 0:
            _draw_gallery(arguments.folder, arguments.pictures)
        page = write_page(arguments.folder)
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{page}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
