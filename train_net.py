#!/usr/bin/env python
"""Train or evaluate a model.

    train_net.py --data town/                     find, check, write a recipe, train, keep the best, score
    train_net.py --data town/ --epochs 50 --weights coco_panoptic.pth --backbone R50 SOLVER.BASE_LR 0.0002
    train_net.py --config-file output/town/recipe.yaml --resume
    train_net.py --config-file output/town/recipe.yaml --eval-only --weights output/town/model_best.pth

docs/own-data.md leads from a folder to a model. Several processes: --num-gpus N (CPU processes where there
is no GPU), torchrun, or srun.

Exit status: 0 done, 1 failed (one line says why), 2 wrong arguments; 128 and the number of a signal (SIGTERM,
SIGHUP, Ctrl-C) after which the run was saved: --resume goes on.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType

# The libraries are imported after the arguments are read, so that wrong ones and --help take no seconds.

# Options that shape the recipe of a folder, and mean nothing without one.
ONLY_WITH_DATA = ("layout", "epochs", "backbone", "ignore_faults")


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("what to train on").add_argument
    add("--config-file", default="", metavar="FILE", help="configuration, as those under configs/")
    add("--data", default="", metavar="FOLDER", help="a folder of your own pictures and labels")
    add("--layout", default="", metavar="NAME", help="of --data, where it is not clear what lies there")
    add("--epochs", type=int, metavar="N", help="times that --data is gone through (default: by its size)")
    backbone_help = "for --data: R18, R50, R101, or a model of timm (default: by the device)"
    add("--backbone", default="", metavar="NAME", help=backbone_help)
    add("--ignore-faults", action="store_true", help="leave out pictures of --data that have faults")
    import_help = "Python module to import first, from this folder too; registers your data sets or models"
    add("--import", "-m", dest="imports", action="append", default=[], metavar="MODULE", help=import_help)
    add = parser.add_argument_group("weights and results").add_argument
    weights_help = (
        "to start from, or to score: a checkpoint, a backbone's file, a name in the zoo, a folder of "
    )
    add("--weights", default="", metavar="FILE", help=weights_help + "Hugging Face's, a URL")
    add("--output", default="", metavar="DIR", help="folder of the results, as OUTPUT_DIR")
    add("--resume", action="store_true", help="go on from the last checkpoint in the folder of the results")
    overwrite_help = "delete the checkpoints of an earlier run in the folder of the results"
    add("--overwrite", action="store_true", help=overwrite_help)
    add("--eval-only", action="store_true", help="score weights; writes to a folder of its own")
    add("--strict", action="store_true", help="refuse weights that do not fit the model in every entry")
    add("--allow-unsafe", action="store_true", help="read weight files that may run code")
    add("--debug", action="store_true", help="show where an error came from")
    add = parser.add_argument_group("processes").add_argument
    add("--num-gpus", type=int, default=1, metavar="N", help="processes on this machine (%(default)s)")
    add("--num-machines", type=int, default=1, metavar="N", help="(%(default)s)")
    add("--machine-rank", type=int, default=0, metavar="N", help="of this machine (%(default)s)")
    # One port a user: a second run beside a first is told, not mixed up with it.
    port = 49152 + os.getuid() % 16384
    add("--dist-url", default=f"tcp://127.0.0.1:{port}", metavar="URL", help="(default: %(default)s)")
    opts_help = "changes of the configuration, at the end of the line, as SOLVER.IMS_PER_BATCH 8"
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help=opts_help)
    return parser


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Exit with one line about arguments that contradict each other or are out of range."""
    if bool(arguments.data) == bool(arguments.config_file):
        parser.error("give either --data, with a folder of your own, or --config-file")
    stray = [name for name in ONLY_WITH_DATA if getattr(arguments, name) and not arguments.data]
    if stray:
        parser.error(f"--{stray[0].replace('_', '-')} is for --data; a configuration has keys for it")
    if arguments.epochs is not None and arguments.epochs < 1:
        parser.error("--epochs starts at 1")
    if arguments.num_gpus < 1:
        parser.error("--num-gpus starts at 1; it counts processes, on a machine without a GPU too")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and return the exit status; an error is one line on stderr."""
    parser = argument_parser()
    arguments = parser.parse_args(argv)
    check(parser, arguments)
    # Silence what libraries warn of each other, also in worker processes.
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        from mask_former.engine import RunOptions, launch
        from mask_former.engine import main as run

        processes = (arguments.num_gpus, arguments.num_machines, arguments.machine_rank, arguments.dist_url)
        launch(run, *processes, args=(RunOptions.of(arguments),))
    except KeyboardInterrupt:
        sys.stderr.write("stopped before the first step\n")
        return 130
    except Exception as error:
        if arguments.debug:
            raise
        from mask_former.engine.screen import told

        logging.getLogger("mask_former").debug("The run failed", exc_info=True)  # in the log file
        sys.stderr.write(f"error: {told(error)}\n")
        return 1
    return 0


def end(number: int, frame: FrameType | None) -> None:
    """End at once on a signal outside of the training steps, where there is nothing to save."""
    sys.stderr.write(f"stopped by {signal.Signals(number).name} before the first step or after the last\n")
    sys.stderr.flush()
    # Not an exception: libraries swallow some, and the exit of Python would wait for spawned processes.
    os._exit(128 + number)


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:
            signal.signal(ending, end)
    sys.exit(main())
