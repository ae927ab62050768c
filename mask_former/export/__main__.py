"""Export a model to one file: `python -m mask_former.export model_final.pth model.onnx [--verify FOLDER]`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from mask_former.config import load_config
from mask_former.export.graph import export
from mask_former.export.parity import Bounds, print_report, read_pictures, verify
from mask_former.export.quantization import quantize
from mask_former.export.speed import measure, print_times
from mask_former.modeling.build import build_model
from mask_former.prediction.classes import classes_of_dataset
from mask_former.prediction.predictor import Predictor


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m mask_former.export", description=__doc__)
    parser.add_argument(
        "weights",
        help="checkpoint that describes itself; weights of --config-file; or 'random', to measure time",
    )
    parser.add_argument(
        "file", type=Path, help="file to write: .onnx, .xml (OpenVINO) or .pt2 (torch.export)"
    )
    parser.add_argument("--config-file", help="configuration of weights that do not describe themselves")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="over the checkpoint's configuration"
    )
    parser.add_argument(
        "--semantic", action="store_true", help="label maps instead of logits out of the graph"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="fix the size of the input (default: any)",
    )
    parser.add_argument(
        "--verify",
        type=Path,
        metavar="PHOTOS",
        help="compare with torch on these pictures; writes FILE.parity.json",
    )
    parser.add_argument(
        "--limit", type=int, default=8, help="most pictures of --verify and --int8 scores (8)"
    )
    parser.add_argument(
        "--labels", type=Path, help="true label files or panoptic JSON of the pictures, for mIoU or PQ"
    )
    parser.add_argument(
        "--int8", type=Path, metavar="PHOTOS", help="quantise backbone and pixel decoder, calibrated on these"
    )
    parser.add_argument(
        "--max-loss", type=float, default=0.5, help="most PQ or mIoU that --int8 may lose (default: 0.5)"
    )
    parser.add_argument(
        "--min-speedup", type=float, default=1.5, help="least speed-up of --int8 (default: 1.5)"
    )
    parser.add_argument(
        "--time",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="compare the time from a picture of this size to its result with torch's",
    )
    parser.add_argument("--threads", type=int, default=2, help="of --time (default: 2)")
    return parser


def build_predictor(arguments: argparse.Namespace) -> Predictor:
    """Return the predictor of the weights on the CPU."""
    if arguments.weights == "random":
        if not arguments.config_file:
            raise ValueError("Random weights need a model: give --config-file.")
        cfg = load_config(arguments.config_file, arguments.opts)
        classes = classes_of_dataset(cfg)
        return Predictor(build_model(cfg, "cpu", classes.things or None), cfg, classes)
    if arguments.config_file:
        cfg = load_config(arguments.config_file, arguments.opts)
        return Predictor.from_config(cfg, arguments.weights, device="cpu", precision="plain")
    options = {"device": "cpu", "opts": arguments.opts, "precision": "plain"}
    return Predictor.from_checkpoint(arguments.weights, **options)


def run(arguments: argparse.Namespace) -> int:
    """Export, quantise and verify as the arguments say; return the exit status."""
    if arguments.verify is not None:
        read_pictures(arguments.verify, limit=1)  # before the export, which takes long
    predictor = build_predictor(arguments)
    size = None if arguments.size is None else tuple(arguments.size)
    if arguments.int8:
        quantize(
            predictor,
            arguments.file,
            arguments.int8,
            labels=arguments.labels,
            limit=arguments.limit,
            max_loss=arguments.max_loss,
            min_speedup=arguments.min_speedup,
        )
    else:
        export(predictor, arguments.file, semantic=arguments.semantic, size=size)
    sys.stdout.write(f"Wrote {arguments.file} ({arguments.file.stat().st_size / 1e6:.1f} MB).\n")
    if arguments.time is not None:
        print_times(measure(predictor, arguments.file, tuple(arguments.time), arguments.threads))
    if arguments.verify is None:
        return 0
    bounds = Bounds() if arguments.int8 is None else Bounds(logits=float("inf"), pixels=0.0)
    report = verify(
        predictor,
        arguments.file,
        arguments.verify,
        labels=arguments.labels,
        limit=arguments.limit,
        bounds=bounds,
    )
    print_report(report)
    return 0 if report["passed"] else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; errors are one line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    arguments = argument_parser().parse_args(argv)
    try:
        return run(arguments)
    except (ValueError, KeyError, OSError, ImportError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        sys.stderr.write(f"error: {message}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
