"""Score saved predictions: `python -m mask_former.evaluation --pred ... --gt ...`."""

import argparse
import json
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import MetadataCatalog

from mask_former.formats import read_json

from . import saved
from .evaluators import score_tables
from .ground_truth import Classes, entries_by_file, metadata_value, semantic_classes

EXAMPLES = """
what --pred may be, and its --gt:
  predictions.json with PNG folder (COCO panoptic)   panoptic JSON (with its PNG folder)      PQ, SQ, RQ
  folder of label PNG or TIFF files                  folder of label files of the same names  mIoU, PQ
  sem_seg_predictions.json (run lengths)             folder of label files                    mIoU, PQ
  coco_instances_results.json (COCO results)         COCO instance JSON                       AP

examples:
  python -m mask_former.evaluation --pred out/predictions.json --gt annotations/panoptic_val2017.json
  python -m mask_former.evaluation --pred labels/ --gt annotations/val/ --num-classes 150
  python -m mask_former.evaluation --pred inference/sem_seg_predictions.json --dataset ade20k_sem_seg_val
"""


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mask_former.evaluation",
        description="Score saved predictions against ground truth, without a model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pred", type=Path, required=True, help="predictions: a JSON file or a folder")
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--gt", type=Path, help="ground truth: a JSON file or a folder")
    truth.add_argument("--dataset", help="a registered data set to take ground truth and classes from")
    parser.add_argument(
        "--task", choices=["panoptic", "semantic", "instance"], help="default: by the content of --pred"
    )
    parser.add_argument(
        "--pred-folder", type=Path, help="PNG files of a panoptic --pred (default: beside it)"
    )
    parser.add_argument("--gt-folder", type=Path, help="PNG files of a panoptic --gt (default: near it)")
    parser.add_argument(
        "--num-classes", type=int, help="classes of label files, if --class-names is not given"
    )
    parser.add_argument(
        "--class-names",
        type=Path,
        help="JSON list of class names, or of objects with a 'name', in label order",
    )
    parser.add_argument("--ignore-label", type=int, default=255, help="label that is void (default: 255)")
    parser.add_argument(
        "--void-is-background",
        action="store_true",
        help="count a class predicted on void as a mistake (always so with a single class)",
    )
    parser.add_argument("--per-class", action="store_true", help="print a row for each class, too")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all scores to this file")
    return parser


def score(arguments: argparse.Namespace) -> saved.Scores:
    """Return the scores for the arguments of a command line."""
    for path in (arguments.pred, arguments.gt):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"{path} does not exist.")
    task = arguments.task or saved.task_of_predictions(arguments.pred)
    if task == "semantic":
        return _semantic(arguments)

    def dataset_file(key: str) -> Path:
        return Path(metadata_value(MetadataCatalog.get(arguments.dataset), key, "needed for this task"))

    if task == "instance":
        return saved.score_instances(arguments.pred, arguments.gt or dataset_file("json_file"))
    truth_folder = arguments.gt_folder
    if arguments.dataset and not truth_folder:
        truth_folder = dataset_file("panoptic_root")
    truth = arguments.gt or dataset_file("panoptic_json")
    return saved.score_panoptic(arguments.pred, truth, arguments.pred_folder, truth_folder)


def _semantic(arguments: argparse.Namespace) -> saved.Scores:
    if arguments.dataset:
        entries = entries_by_file(arguments.dataset)
        classes = semantic_classes(arguments.dataset, entries)
        entries = saved.by_stem(entries)
    else:
        if not arguments.gt.is_dir():
            raise ValueError(f"{arguments.gt}: semantic ground truth must be a folder of label files.")
        entries = saved.label_files(arguments.gt)
        names = _class_names(arguments)
        classes = Classes(names, list(range(len(names))), ignore_label=arguments.ignore_label)
    return saved.score_semantic(arguments.pred, entries, classes, arguments.void_is_background)


def _class_names(arguments: argparse.Namespace) -> list[str]:
    if arguments.class_names is None:
        if arguments.num_classes is None:
            raise ValueError(
                "Label files do not say how many classes there are: give --num-classes or --class-names."
            )
        return [str(index) for index in range(arguments.num_classes)]
    content = read_json(arguments.class_names)
    names = [entry["name"] if isinstance(entry, dict) else str(entry) for entry in content]
    if arguments.num_classes not in (None, len(names)):
        raise ValueError(
            f"{arguments.class_names}: holds {len(names)} class names, "
            f"but --num-classes is {arguments.num_classes}."
        )
    return names


def main(argv: Sequence[str] | None = None) -> int:
    """Score, print and write; return the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    arguments = argument_parser().parse_args(argv)
    try:
        scores = score(arguments)
    except (ValueError, KeyError, OSError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        sys.stderr.write(f"error: {message}\n")
        return 1
    tables = [f"{task}\n{score_tables(values, arguments.per_class)}" for task, values in scores.items()]
    sys.stdout.write("\n\n".join(tables) + "\n")
    if arguments.json is not None:
        # JSON has no NaN.
        plain = {
            task: {key: None if math.isnan(value) else value for key, value in values.items()}
            for task, values in scores.items()
        }
        arguments.json.write_text(json.dumps(plain, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
