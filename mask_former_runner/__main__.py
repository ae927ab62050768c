"""Command line: `python -m mask_former_runner model.onnx photos/ --output results`."""

import argparse
import sys
from collections.abc import Sequence

from mask_former_runner.results import KINDS, write
from mask_former_runner.runner import Runner


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, write files, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mask_former_runner", description=__doc__)
    parser.add_argument("model", help="file that mask_former.export wrote: .onnx, or .xml of OpenVINO")
    parser.add_argument("inputs", nargs="+", help="pictures, folders, videos")
    parser.add_argument("--output", default="results", help="folder of the results (default: results)")
    parser.add_argument("--save", nargs="+", choices=KINDS, default=KINDS, help="kinds of files")
    parser.add_argument("--threads", type=int, default=0, help="of the runtime (default: its own choice)")
    parser.add_argument("--batch-size", type=int, default=1, help="most pictures of one size at once")
    parser.add_argument("--tasks", nargs="+", choices=("semantic", "panoptic", "instance"))
    parser.add_argument("--classes", nargs="+", help="names or indices; pixels of others become void")
    for name in ("score", "mask", "overlap"):
        parser.add_argument(f"--{name}-threshold", type=float)
    parser.add_argument("--top-k", type=int, help="most instances of a picture")
    options = vars(parser.parse_args(argv))
    inputs, output = options.pop("inputs"), options.pop("output")
    kinds, batch_size = options.pop("save"), options.pop("batch_size")
    try:
        count = write(Runner(options.pop("model"), **options)(inputs, batch_size), output, kinds)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{count} pictures, results in {output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
