"""Measure time and memory: `python -m mask_former.benchmark --help`."""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tabulate import tabulate

from mask_former.benchmark import speed
from mask_former.benchmark.measuring import (
    DEFAULT_CONFIG,
    benchmark_config,
    interleaved,
    machine,
    parameters_and_operations,
    random_model,
    ratios,
    summary,
    sums,
)
from mask_former.benchmark.memory import memory_alone

MODES = ("inference", "training", "evaluation", "data", "models")
# Arguments that the heading of a mode states.
SETTINGS = {
    "inference": ("task", "predictions"),
    "training": ("batch", "segments"),
    "evaluation": ("precision", "predictions"),
    "data": ("segments",),
}
# Tables by key of the results: heading of the names, and of the values if they do not name themselves.
HEADERS = {
    "variants": ["median / p95 in ms"],
    "pictures_per_second": ["variant", "pictures a second"],
    "mapper": ["mapper on one core", "samples a second, median"],
    "ratios": ["ratio, pair by pair", "median", "range"],
    "loader": ["workers of the loader", "samples a second"],
    "peak_memory_mib": ["variant, alone in a process", "peak memory, MiB"],
    "evaluation": ["evaluation", "measured"],
    "models": ["model"],
}
EXAMPLES = """examples:
  python -m mask_former.benchmark --size 512 683 --compare naive transformers --memory
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
    add = parser.add_argument
    add("mode", nargs="?", choices=MODES, default="inference")
    config_help = "a configuration, in mode models one or more (default: that of the package)"
    add("--config-file", nargs="+", default=[None], help=config_help)
    add("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=(512, 683))
    add("--rounds", type=int, default=7, help="runs of each variant (default: 7)")
    add("--threads", type=int, help="threads of torch (default: its own choice)")
    add("--compare", nargs="+", default=[], help="naive, transformers; in training: plain")
    add("--memory", action="store_true", help="peak memory, each variant in its own process")
    add("--json", type=Path, metavar="OUT", help="write all that was measured to this file")
    add("--markdown", type=Path, metavar="OUT", help="write the tables to this file")
    add = parser.add_argument_group("inference and evaluation").add_argument
    precision_help = "of the network; 'plain network' is the model as it is trained (default: float32)"
    add("--precision", nargs="+", choices=speed.PRECISIONS, default=["float32"], help=precision_help)
    predictions_help = "class predictions: the random network's, or like a trained model's (default: settled)"
    add("--predictions", choices=("random", "settled"), default="settled", help=predictions_help)
    add("--task", choices=speed.TASKS, default="semantic")
    add("--pictures", type=int, default=50, help="evaluation: how many (default: 50)")
    add("--dataset", help="evaluation: a registered data set instead of synthetic pictures")
    add = parser.add_argument_group("training and data").add_argument
    add("--batch", type=int, default=2, help="pictures per step (default: 2)")
    add("--segments", type=int, default=20, help="segments per picture (default: 20)")
    opts_help = "KEY VALUE pairs of the configuration, last"
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help=opts_help)
    return parser


def measure(arguments: argparse.Namespace, config_file: str | None) -> dict[str, Any]:
    """Return the measurements of a mode with one configuration."""
    mode = arguments.mode
    cfg = benchmark_config(config_file, arguments.opts)
    setting = {
        "mode": mode,
        "config": config_file or "default",
        "size": "x".join(map(str, arguments.size)),
        "classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        **{name: getattr(arguments, name) for name in SETTINGS[mode]},
    }
    results: dict[str, Any] = {"setting": setting, "machine": machine(torch.device(cfg.MODEL.DEVICE))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if mode == "data":
            return results | speed.measure_data(cfg, arguments, folder)
        results["model"] = parameters_and_operations(random_model(cfg), *arguments.size)
        if mode == "evaluation":
            return results | {"evaluation": speed.measure_evaluation(cfg, arguments, folder)}
        results |= _speed(arguments, config_file, folder)
    if arguments.memory:
        variants = results["variants"]
        results["peak_memory_mib"] = {v: memory_alone(arguments, config_file, v) for v in variants}
    return results


def _speed(arguments: argparse.Namespace, config_file: str | None, folder: Path) -> dict[str, Any]:
    """Return summaries of every variant, and the ratios of each of ours to each of the others."""
    ours, others = speed.variants(arguments)
    cfg = benchmark_config(config_file, arguments.opts)
    runs = {variant: speed.build_run(cfg, arguments, variant, folder) for variant in [*ours, *others]}
    times = interleaved(runs, arguments.rounds)
    results: dict[str, Any] = {"variants": {}, "ratios": {}, "pictures_per_second": {}}
    stages = speed.COMPARED_STAGES[arguments.mode]
    compared = {variant: sums(rounds, stages) for variant, rounds in times.items()}
    label = " + ".join(stages)
    for variant, rounds in times.items():
        seconds = {stage: sums(rounds, [stage]) for stage in rounds[0]}
        seconds |= {label: compared[variant], "all": sums(rounds, list(rounds[0]))}
        results["variants"][variant] = {name: summary(values) for name, values in seconds.items()}
        if arguments.mode == "training":
            step = results["variants"][variant]["all"]["median_ms"]
            results["pictures_per_second"][variant] = 1e3 * arguments.batch / step
        elif variant in ours:
            share = ratios(seconds["post-processing"], seconds["network"])
            results["ratios"][f"{variant}: post-processing / network"] = share
        for other in others if variant in ours else ():
            results["ratios"][f"{variant} / {other}: {label}"] = ratios(compared[variant], compared[other])
    return results


def _models(arguments: argparse.Namespace, config_files: Sequence[str | None]) -> dict[str, Any]:
    """Return size, time and memory of inference with each configuration, by the name of its file."""
    changes: dict[str, Any] = {"mode": "inference", "compare": [], "memory": True}
    each = argparse.Namespace(**(vars(arguments) | changes))
    results: dict[str, Any] = {"models": {}, "details": {}}
    for config_file in config_files:
        measured = measure(each, config_file)
        row = dict(zip(("parameters, M", "multiply-adds, G"), measured["model"].values(), strict=True))
        for variant, summaries in measured["variants"].items():
            row[f"{variant}, ms"] = summaries["all"]["median_ms"]
            row[f"{variant}, MiB"] = measured["peak_memory_mib"][variant]
        name = Path(config_file or DEFAULT_CONFIG).stem
        results["models"][name], results["details"][name] = row, measured
    setting = {key: measured["setting"][key] for key in ("size", "task", "predictions")}
    return {"setting": {"mode": "models", **setting}, "machine": measured["machine"], **results}


def report(results: Mapping[str, Any]) -> str:
    """Return tables of the measurements, in Markdown that reads as plain text, too."""
    facts = {**results["setting"], **results.get("model", {}), **results["machine"]}
    parts = [", ".join(f"{name.replace('_', ' ')} {_cells(value)[0]}" for name, value in facts.items())]
    tables = {**results, **results.get("data", {})}
    for key, header in HEADERS.items():
        if tables.get(key):
            rows = [[str(name), *_cells(value)] for name, value in tables[key].items()]
            first = next(iter(tables[key].values()))
            columns = list(first) if len(header) == 1 else []
            parts.append(tabulate(rows, [*header, *columns], tablefmt="github", disable_numparse=True))
    return "\n\n".join(parts) + "\n"


def _cells(value: Any) -> list[str]:
    """Return the cells of a measurement."""
    if isinstance(value, Mapping):
        if "pairs" in value:
            return [f"{value['median']:.3f}", f"{min(value['pairs']):.3f} to {max(value['pairs']):.3f}"]
        if "median_ms" in value:
            return [f"{value['median_ms']:.1f} / {value['p95_ms']:.1f}"]
        return [cell for part in value.values() for cell in _cells(part)]
    if isinstance(value, list):
        return _cells(median(value))
    if value is None:
        return ["failed"]
    return [f"{value:.4g}" if isinstance(value, float) else str(value)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit status."""
    parser = argument_parser()
    arguments = parser.parse_args(argv)
    config_files = arguments.config_file
    if arguments.mode != "models" and len(config_files) > 1:
        parser.error(f"--config-file takes one file in mode {arguments.mode}, several in mode models alone")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        is_list = arguments.mode == "models"
        results = _models(arguments, config_files) if is_list else measure(arguments, config_files[0])
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
