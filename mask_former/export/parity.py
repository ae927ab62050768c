"""How close the results of an exported file are to those of the Predictor: a report, bounds, a table."""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy
from numpy.typing import NDArray
from PIL import Image

from mask_former.evaluation import __main__ as evaluation
from mask_former.export.graph import build_graph, import_optional, load_program, read_openvino, save_openvino
from mask_former.export.metadata import as_text
from mask_former.formats import PICTURE_SUFFIXES, read_picture, replacing
from mask_former.prediction.classes import ClassTable
from mask_former.prediction.predictor import Predictor
from mask_former.prediction.writing import ResultWriter

BATCHES = (1, 2, 3)
# Shares of height and width of each picture that are compared: sizes differ, also after resizing.
CROPS = ((1.0, 1.0), (0.75, 1.0), (1.0, 0.6))
Pixels = NDArray[np.uint8]


class Bounds(NamedTuple):
    """What a file must keep.

    logits: most that an output may differ, as a share of its largest value.
    pixels: least share of equal pixels in each kind of map.
    """

    logits: float = 1e-4
    pixels: float = 0.9999


def verify(
    predictor: Predictor,
    file: Path,
    photos: Path,
    *,
    labels: Path | None = None,
    limit: int = 8,
    bounds: Bounds | None = None,
) -> dict[str, Any]:
    """Compare a file with the predictor, write `<file>.parity.json` beside it, and return its content.

    Args:
        predictor: that the file was exported from.
        file: .onnx (run by onnxruntime and, where it is installed, OpenVINO), .xml or .pt2.
        photos: a folder of pictures; three sizes of each are compared, in batches of 1, 2 and 3.
        labels: folder of true label files, or panoptic JSON, with the stems of the pictures; None: no scores.
        limit: most pictures.
        bounds: by default `Bounds()`.
    """
    bounds = bounds or Bounds()
    pictures = read_pictures(photos, limit)
    with tempfile.TemporaryDirectory() as folder:
        runners = file_runners(file, Path(folder))
        rows = list(_rows(predictor, runners, pictures))
        report: dict[str, Any] = {
            "model": file.name,
            "pictures": len(pictures),
            "bounds": bounds._asdict(),
            "rows": rows,
            "scores": {},
        }
        if labels is not None and file.suffix != ".pt2":
            truth = Truth(labels, [name for name, _ in pictures], predictor.classes, Path(folder))
            report["scores"] = {"torch": truth.score(predictor, pictures)}
            report["scores"] |= {name: truth.score(runner, pictures) for name, runner in runners.items()}
    report["passed"] = all(_keeps(row, bounds) for row in rows)
    with replacing(file.with_name(f"{file.stem}.parity.json")) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")
    return report


def read_pictures(folder: Path, limit: int) -> list[tuple[str, Pixels]]:
    """Return the first pictures in a folder, in order of name, with their stems."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder with pictures.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    if not files:
        raise ValueError(f"{folder}: holds no pictures ({' '.join(sorted(PICTURE_SUFFIXES))}).")
    return [(path.stem, read_picture(path, "RGB")) for path in files[:limit]]


def prepared(cfg: CfgNode, pixels: Pixels) -> torch.Tensor:
    """Return what the graph takes of a picture (H, W, 3) in RGB: (C, h, w) uint8, resized as at test time."""
    image = convert_PIL_to_numpy(Image.fromarray(pixels), cfg.INPUT.FORMAT)
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST, "choice")
    image = resize.get_transform(image).apply_image(np.ascontiguousarray(image))
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def runner_class() -> Any:
    """Return `mask_former_runner.Runner`, or raise ImportError with one line."""
    try:
        from mask_former_runner import Runner
    except ImportError as error:
        raise ImportError(
            "Files are run by mask_former_runner, which is not installed: pip install ./mask_former_runner"
        ) from error
    return Runner


class ProgramRunner:
    """A .pt2 program, of which outputs alone are compared."""

    def __init__(self, file: Path) -> None:
        self.program = load_program(file)

    def graph(self, images: Pixels) -> list[NDArray[Any]]:
        """Return the outputs for images (B, C, H, W) uint8."""
        with torch.no_grad():
            return [output.numpy() for output in self.program(torch.from_numpy(images))]


def file_runners(file: Path, folder: Path, threads: int = 0) -> dict[str, Any]:
    """Return what runs a file, by runtime; files in between go to `folder`."""
    if file.suffix == ".pt2":
        return {"torch.export": ProgramRunner(file)}
    runner = runner_class()
    runners = {"openvino" if file.suffix == ".xml" else "onnxruntime": runner(file, threads)}
    if file.suffix == ".onnx" and _is_installed("openvino"):
        text = as_text(runners["onnxruntime"].metadata)
        save_openvino(read_openvino(file.read_bytes(), text), folder / "model.xml")
        runners["openvino"] = runner(folder / "model.xml", threads)
    return runners


def _is_installed(name: str) -> bool:
    try:
        import_optional(name)
    except ImportError:
        return False
    return True


def _rows(
    predictor: Predictor, runners: dict[str, Any], pictures: Sequence[tuple[str, Pixels]]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each picture, size, batch and runtime."""
    reference = None
    for name, whole in pictures:
        for down, across in CROPS:
            pixels = whole[: round(down * whole.shape[0]), : round(across * whole.shape[1])]
            # Three different pictures of one size.
            turned = [pixels, pixels[:, ::-1], pixels[::-1]]
            for batch in BATCHES:
                images = [np.ascontiguousarray(image) for image in turned[:batch]]
                for runtime, runner in runners.items():
                    is_program = isinstance(runner, ProgramRunner)
                    gives_labels = not is_program and runner.graph.outputs == ["labels"]
                    reference = reference or build_graph(predictor.model, gives_labels, fold=False)
                    inputs = torch.stack([prepared(predictor.cfg, image) for image in images])
                    with torch.no_grad():
                        expected = [output.numpy() for output in reference(inputs)]
                    outputs = runner.graph(inputs.numpy())
                    outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
                    row = {
                        "picture": name,
                        "height": pixels.shape[0],
                        "width": pixels.shape[1],
                        "batch": batch,
                        "runtime": runtime,
                        "outputs": {
                            key: _largest_difference(a, b)
                            for key, a, b in zip(reference.outputs, expected, outputs, strict=True)
                            if key != "labels"
                        },
                        "pixels": {},
                    }
                    if not is_program:
                        size = tuple(inputs.shape[-2:]) if gives_labels else None
                        theirs = list(runner(images, batch, size))
                        ours = predictor(images, batch_size=batch, output_size=size)
                        row["pixels"] = _equal_shares(ours, theirs)
                    yield row


def _largest_difference(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """Return the largest difference as a share of the largest value."""
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def _equal_shares(ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, float]:
    """Return the least share of equal pixels over the pictures of a batch, by kind of map."""
    maps = {"semantic": lambda r: r.semantic, "panoptic": _panoptic_map, "instance": _instance_map}
    shares = {}
    for kind, of_result in maps.items():
        pairs = [(of_result(a), of_result(b)) for a, b in zip(ours, theirs, strict=True)]
        if all(a is not None and b is not None for a, b in pairs):
            shares[kind] = min(float((a == b).mean()) for a, b in pairs)
    return shares


def _panoptic_map(result: Any) -> NDArray[np.int64] | None:
    """Return a map (H, W) that tells ids and classes of segments."""
    if result.panoptic is None:
        return None
    table = np.zeros(int(result.panoptic.max(initial=0)) + 1, np.int64)
    for segment in result.segments:
        table[segment.id] = segment.id * 2**32 + segment.category_id
    return table[result.panoptic]


def _instance_map(result: Any) -> NDArray[np.int64] | None:
    """Return a map (H, W) of the best instance of each pixel, with its class; 0 where there is none."""
    if result.instances is None:
        return None
    drawn = np.zeros((result.height, result.width), np.int64)
    masks, classes = result.instances.masks, result.instances.classes
    for number in range(len(masks) - 1, -1, -1):
        drawn[masks[number]] = (number + 1) * 2**32 + classes[number]
    return drawn


def _keeps(row: dict[str, Any], bounds: Bounds) -> bool:
    return all(value <= bounds.logits for value in row["outputs"].values()) and all(
        share >= bounds.pixels for share in row["pixels"].values()
    )


class Truth:
    """What predictions of some pictures are scored against."""

    def __init__(self, labels: Path, stems: Sequence[str], classes: ClassTable, folder: Path) -> None:
        """Select the truth of the pictures.

        Args:
            labels: a folder of label files, or panoptic JSON.
            stems: of the pictures.
            classes: of the model.
            folder: for files in between.
        """
        self.folder = folder
        self.classes = classes
        self.is_panoptic = labels.suffix == ".json"
        chosen = folder / ("truth.json" if self.is_panoptic else "truth")
        self.arguments = ["--gt", str(chosen)]
        if self.is_panoptic:
            content = json.loads(labels.read_text())
            content["annotations"] = [
                entry for entry in content["annotations"] if Path(entry["file_name"]).stem in stems
            ]
            self.image_ids = {Path(e["file_name"]).stem: e["image_id"] for e in content["annotations"]}
            chosen.write_text(json.dumps(content))
            masks = labels.with_suffix("")
            masks = masks if masks.is_dir() else labels.parent.parent / labels.stem
            self.arguments += ["--gt-folder", str(masks)]
            found = set(self.image_ids)
        else:
            chosen.mkdir()
            files = [path for path in sorted(labels.rglob("*.png")) if path.stem in stems]
            for path in files:
                shutil.copy(path, chosen)
            found = {path.stem for path in files}
            names = folder / "names.json"
            names.write_text(json.dumps(list(classes.names)))
            self.arguments += ["--class-names", str(names), "--ignore-label", str(classes.void_label)]
        missing = sorted(set(stems) - found)
        if missing:
            raise ValueError(
                f"{labels}: no labels of {', '.join(missing[:3])} ({len(missing)} of the pictures)."
            )

    def score(self, predict: Any, pictures: Sequence[tuple[str, Pixels]]) -> dict[str, float]:
        """Return `PQ` or `mIoU` in percent of what a predictor or runner gives for the pictures."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        save_results(predict, pictures, folder, self.classes, ["panoptic" if self.is_panoptic else "labels"])
        prediction = folder / "labels"
        if self.is_panoptic:
            prediction = folder / "panoptic.json"
            content = json.loads(prediction.read_text())
            for entry in content["annotations"]:
                entry["image_id"] = self.image_ids[Path(entry["file_name"]).stem]
            prediction.write_text(json.dumps(content))
        arguments = ["--pred", str(prediction), *self.arguments]
        scores = evaluation.score(evaluation.argument_parser().parse_args(arguments))
        key = ("panoptic_seg", "PQ") if self.is_panoptic else ("sem_seg", "mIoU")
        return {key[1]: float(scores[key[0]][key[1]])}


def save_results(
    predict: Any,
    pictures: Iterable[tuple[str, Pixels]],
    folder: Path,
    classes: ClassTable,
    kinds: Sequence[str],
) -> None:
    """Write the results of a predictor or runner, named after the pictures."""
    import dataclasses

    with ResultWriter(folder, kinds, classes) as writer:
        for name, pixels in pictures:
            for result in predict([pixels]):
                writer.write(dataclasses.replace(result, image_name=name, classes=classes))


def print_report(report: dict[str, Any]) -> None:
    """Print the worst row of each runtime, the scores, and whether the bounds are kept."""
    lines = ["runtime        batches  sizes  largest difference   least share of equal pixels"]
    for runtime in dict.fromkeys(row["runtime"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["runtime"] == runtime]
        sizes = {(row["height"], row["width"]) for row in rows}
        largest = max((value for row in rows for value in row["outputs"].values()), default=0.0)
        kinds = dict.fromkeys(kind for row in rows for kind in row["pixels"])
        shares = ", ".join(f"{kind} {min(row['pixels'][kind] for row in rows):.6f}" for kind in kinds)
        batches = ",".join(str(batch) for batch in sorted({row["batch"] for row in rows}))
        lines.append(f"{runtime:<14} {batches:<8} {len(sizes):<6} {largest:<20.2e} {shares or '-'}")
    for runtime, scores in report["scores"].items():
        lines.append(f"{runtime}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    bounds = report["bounds"]
    verdict = "kept" if report["passed"] else "BROKEN"
    lines.append(f"Bounds {verdict}: difference {bounds['logits']:g}, equal pixels {bounds['pixels']:g}.")
    sys.stdout.write("\n".join(lines) + "\n")
