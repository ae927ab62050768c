"""`python -m mask_former.benchmark`: see --help."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mask_former.benchmark import data_speed, evaluation_speed, inference_speed, training_speed
from mask_former.benchmark.subjects import (
    DEFAULT_CONFIG,
    PREDICTIONS,
    benchmark_config,
    machine,
    parameters_and_operations,
    random_model,
)
from mask_former.benchmark.tables import report
from mask_former.benchmark.timing import (
    Run,
    in_own_process,
    interleaved,
    peak_memory,
    ratios,
    summaries,
    summary,
)

MODES = ("inference", "training", "evaluation", "data", "models")
EXAMPLES = """examples:
  python -m mask_former.benchmark --config-file configs/ade20k-150/maskformer_R50_bs16_160k.yaml \\
      --size 512 683 --compare naive transformers --predictions settled
  python -m mask_former.benchmark training --size 512 512 --batch 2 --segments 20 --compare plain --memory
  python -m mask_former.benchmark evaluation --size 640 1280 --pictures 50
  python -m mask_former.benchmark data --size 512 683 --segments 40
  python -m mask_former.benchmark models --config-file configs/ade20k-150/*.yaml --markdown models.md

Weights are random: times do not depend on them, apart from --predictions. Each comparison is the median of
the ratios of pairs of runs that took turns on the same machine."""


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mask_former.benchmark",
        description="Parameters, operations, time by stage and peak memory of a model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("mode", nargs="?", choices=MODES, default="inference")
    parser.add_argument(
        "--config-file",
        nargs="+",
        default=[None],
        help="a configuration, in mode models one or more (default: that of the package)",
    )
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=(512, 683))
    parser.add_argument("--rounds", type=int, default=7, help="runs of each variant (default: 7)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--compare", nargs="+", default=[], help="naive, transformers; in training: plain")
    parser.add_argument("--memory", action="store_true", help="peak memory, each variant in its own process")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all that was measured to this file")
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="write the tables to this file")
    inference = parser.add_argument_group("inference and evaluation")
    inference.add_argument(
        "--precision",
        nargs="+",
        choices=inference_speed.OURS,
        default=["float32"],
        help="how to prepare the network; 'plain network' is the model as it is trained (default: float32)",
    )
    inference.add_argument(
        "--predictions",
        choices=PREDICTIONS,
        default="settled",
        help="class predictions: the random network's, or like a trained model's (default: settled)",
    )
    inference.add_argument("--task", choices=inference_speed.TASKS, default="semantic")
    inference.add_argument("--pictures", type=int, default=50, help="evaluation: how many (default: 50)")
    inference.add_argument("--dataset", help="evaluation: a registered data set instead of made-up pictures")
    training = parser.add_argument_group("training and data")
    training.add_argument("--batch", type=int, default=2, help="pictures a step (default: 2)")
    training.add_argument("--segments", type=int, default=20, help="segments a picture (default: 20)")
    # One variant alone, for --memory: prints its peak as JSON.
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs of the configuration, last"
    )
    return parser


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all that was asked for."""
    if arguments.mode == "models":
        return _models(arguments)
    cfg = benchmark_config(arguments.config_file, arguments.opts)
    results: dict[str, Any] = {
        "machine": machine(torch.device(cfg.MODEL.DEVICE)),
        "setting": {
            "mode": arguments.mode,
            "config": arguments.config_file or "default",
            "size": "x".join(map(str, arguments.size)),
            "classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            **_mode_setting(arguments),
        },
    }
    if arguments.mode == "data":
        return results | {"data": _data(arguments)}
    results["model"] = parameters_and_operations(random_model(cfg), *arguments.size)
    if arguments.mode == "evaluation":
        return results | {"evaluation": _evaluation(arguments)}
    results |= _speed(arguments)
    if arguments.memory:
        results["peak_memory_mib"] = {
            variant: _memory(arguments, variant) for variant in _variants(arguments)
        }
    return results


def _memory(arguments: argparse.Namespace, variant: str) -> float | None:
    """Return the peak memory of a process that runs one variant alone, None where that failed."""
    try:
        peak: float = in_own_process(_words_for_one(arguments, variant))["peak_mib"]
    except RuntimeError as error:
        sys.stderr.write(f"warning: no peak memory of {variant}: {error}\n")
        return None
    return peak


def _words_for_one(arguments: argparse.Namespace, variant: str) -> list[str]:
    """Return the command line that runs one variant alone."""
    words = [arguments.mode, "--alone", variant, "--size", *map(str, arguments.size)]
    for name in ("config_file", "threads", "predictions", "task", "batch", "segments"):
        value = getattr(arguments, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return [*words, "--opts", *map(str, arguments.opts)]


def _mode_setting(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.mode == "training":
        return {"batch": arguments.batch, "segments": arguments.segments}
    if arguments.mode == "data":
        return {"segments": arguments.segments}
    if arguments.mode == "evaluation":
        return {"precision": arguments.precision[0], "predictions": arguments.predictions}
    return {"task": arguments.task, "predictions": arguments.predictions}


def _variants(arguments: argparse.Namespace) -> list[str]:
    """Return ours, then what they are compared with."""
    if arguments.mode == "training":
        ours, *known = training_speed.VARIANTS
        first = [ours]
    else:
        first, known = list(arguments.precision), list(inference_speed.OTHERS)
        inference_speed.check_variants(arguments.compare, arguments.task)
    unknown = [name for name in arguments.compare if name not in known]
    if unknown:
        raise ValueError(f"--compare {unknown[0]}: in mode {arguments.mode}, expected {' or '.join(known)}.")
    return [*first, *arguments.compare]


def _build_run(arguments: argparse.Namespace, variant: str, folder: Path) -> Run:
    cfg = benchmark_config(arguments.config_file, arguments.opts)
    height, width = arguments.size
    if arguments.mode == "training":
        setting = training_speed.Setting(cfg, (height, width), arguments.batch, arguments.segments)
        return training_speed.build_run(setting, variant, folder)
    size = (height, width)
    return inference_speed.build_run(
        inference_speed.Setting(cfg, size, arguments.predictions, arguments.task), variant, folder
    )


def _speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return summaries of every variant and the ratios of each of ours to each of the others."""
    variants = _variants(arguments)
    is_training = arguments.mode == "training"
    compared = (training_speed if is_training else inference_speed).COMPARED_STAGES
    with tempfile.TemporaryDirectory() as folder:
        runs = {variant: _build_run(arguments, variant, Path(folder)) for variant in variants}
        times = interleaved(runs, arguments.rounds)
    name = " + ".join(compared)
    found: dict[str, Any] = {
        "variants": {variant: summaries(rounds, {name: compared}) for variant, rounds in times.items()},
        "ratios": {},
    }
    for variant in variants:
        step = [sum(seconds.values()) for seconds in times[variant]]
        found["variants"][variant]["all"] = summary(step)
        if is_training:
            pictures = 1e3 * arguments.batch / found["variants"][variant]["all"]["median_ms"]
            found.setdefault("pictures_per_second", {})[variant] = pictures
        elif variant not in arguments.compare:
            share = ratios(
                [{"": seconds["post-processing"]} for seconds in times[variant]],
                [{"": seconds["network"]} for seconds in times[variant]],
                [""],
            )
            found["ratios"][f"{variant}: post-processing / network"] = share
        if variant not in arguments.compare:
            for other in arguments.compare:
                key = f"{variant} / {other}: {name}"
                found["ratios"][key] = ratios(times[variant], times[other], compared)
    return found


def _evaluation(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.compare or arguments.memory or len(arguments.precision) > 1:
        raise ValueError("mode evaluation takes one --precision, and neither --compare nor --memory.")
    cfg = benchmark_config(arguments.config_file, arguments.opts)
    height, width = arguments.size
    if not arguments.dataset:
        # Pictures as they are, not resized.
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = min(height, width), max(height, width)
    with tempfile.TemporaryDirectory() as folder:
        name = arguments.dataset or evaluation_speed.register_pictures(
            Path(folder), arguments.pictures, (height, width), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        )
        return evaluation_speed.measure(
            cfg, name, arguments.precision[0], arguments.predictions, Path(folder) / "scores"
        )


def _models(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what inference costs with each configuration, by the name of its file."""
    found: dict[str, Any] = {}
    for config_file in arguments.config_files:
        changes = {"mode": "inference", "config_file": config_file, "compare": [], "memory": True}
        one = argparse.Namespace(**{**vars(arguments), **changes})
        found[Path(config_file or DEFAULT_CONFIG).stem] = measure(one)
    first = next(iter(found.values()))
    setting = {key: first["setting"][key] for key in ("size", "task", "predictions")}
    return {"machine": first["machine"], "setting": {"mode": "models", **setting}, "models": found}


def _data(arguments: argparse.Namespace) -> dict[str, Any]:
    height, width = arguments.size
    cfg = benchmark_config(arguments.config_file, arguments.opts)
    setting = data_speed.Setting(cfg, (height, width), arguments.segments)
    with tempfile.TemporaryDirectory() as folder:
        return data_speed.measure(setting, Path(folder), arguments.rounds)


def _alone(arguments: argparse.Namespace) -> dict[str, float]:
    """Run one variant and return what memory this process took at most."""
    with tempfile.TemporaryDirectory() as folder:
        run = _build_run(arguments, arguments.alone, Path(folder))
        for _ in range(3):
            run()
    return {"peak_mib": peak_memory(torch.device(arguments.device))}


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of a command line."""
    parser = argument_parser()
    arguments = parser.parse_args(words)
    arguments.config_files = arguments.config_file
    if arguments.mode != "models" and len(arguments.config_files) > 1:
        parser.error(f"--config-file takes one file in mode {arguments.mode}, several in mode models alone")
    (arguments.config_file, *_) = arguments.config_files
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit status."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        if arguments.alone:
            arguments.device = benchmark_config(arguments.config_file, arguments.opts).MODEL.DEVICE
            sys.stdout.write(json.dumps(_alone(arguments)) + "\n")
            return 0
        results = measure(arguments)
    except (ValueError, KeyError, OSError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        sys.stderr.write(f"error: {message}\n")
        return 1
    text = report(results)
    sys.stdout.write(text)
    if arguments.markdown is not None:
        arguments.markdown.write_text(text)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
