"""Convert weights, or say what a file of weights is: `python -m mask_former.convert`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from mask_former.checkpoint import describe, described_config, resolve
from mask_former.checkpoint.fitting import fit_weights
from mask_former.checkpoint.reading import file_kind
from mask_former.config import load_config
from mask_former.conversion.backbones import describe_backbone
from mask_former.conversion.files import (
    TITLES,
    SourceWeights,
    read_source,
    target_of,
    write_checkpoint,
    write_hugging_face,
    write_published,
)
from mask_former.conversion.verify import compare_backbone, compare_model

TOLERANCE = 1e-4
FORMATS = {
    "zip": "torch archive",
    "legacy": "torch file of before version 1.6",
    "pickle": "pickle",
    "safetensors": "safetensors",
}
CLASSIFIERS = ("sem_seg_head.predictor.class_embed.bias", "sem_seg_head.predictor.bias")
QUERIES = "sem_seg_head.predictor.query_embed.weight"
EXAMPLES = """
SRC may be: a ResNet of torchvision or timm, a Swin release or a Swin of timm, a Hugging Face folder, a
published .pkl, or a checkpoint of ours (.pth, .safetensors); a path, URL or detectron2:// name.
DST tells what is written: .pth or .safetensors (ours), .pkl (the published layout), a folder (Hugging Face).

examples:
  python -m mask_former.convert resnet101-63fe2227.pth R-101.pkl
  python -m mask_former.convert swin_tiny_patch4_window7_224.pth swin_tiny_patch4_window7_224.pkl --verify
  python -m mask_former.convert output/model_final.pth my_model/ --verify
  python -m mask_former.convert my_model/ model.pth
  python -m mask_former.convert inspect output/model_final.pth
"""


def argument_parser(is_inspection: bool) -> argparse.ArgumentParser:
    """Return the parser of a conversion, or of `inspect`."""
    text = "Convert weights between frameworks and layouts."
    if is_inspection:
        text = "Say what a file of weights is, and how it fits a configuration."
    parser = argparse.ArgumentParser(
        prog="python -m mask_former.convert" + (" inspect" if is_inspection else ""),
        description=text,
        epilog="" if is_inspection else EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if is_inspection:
        parser.add_argument("source", metavar="FILE", help="weights: a path, URL or detectron2:// name")
    else:
        parser.add_argument("source", metavar="SRC", help="weights, or 'inspect' (see inspect --help)")
        parser.add_argument("target", metavar="DST", type=Path, help="file or folder to write")
        parser.add_argument("--verify", action="store_true", help="run both sides on an image and compare")
        parser.add_argument("--licence", default="", help="licence of the weights, noted in what is written")
        labels = "Hugging Face folder: labels will be raw ADE20K's (0 is void, 1 is the first class)"
        parser.add_argument("--reduce-labels", action="store_true", help=labels)
    parser.add_argument("--config-file", help="configuration of the model, where the file does not hold it")
    changes = "changes of the configuration"
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help=changes)
    unsafe = "run whatever code a pickle names; only for files you trust"
    parser.add_argument("--allow-unsafe", action="store_true", help=unsafe)
    return parser


def configuration(source: SourceWeights, config_file: str | None, opts: Sequence[str]) -> CfgNode | None:
    """Return the configuration of a model: the file given, else what the weights say; None for neither."""
    if config_file or opts:
        return load_config(config_file, opts)
    if source.keys:
        cfg = load_config()
        for key, value in source.keys.items():
            cfg.merge_from_list([key, value])
        return cfg
    return described_config(source.metadata)


def class_names_of(source: SourceWeights, cfg: CfgNode) -> list[str]:
    """Return the names of the classes: the file's, else those of the configuration's data set."""
    if len(source.names) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
        return source.names
    names = [name for name in cfg.DATASETS.TRAIN[:1] if name in MetadataCatalog.list()]
    return describe(cfg, MetadataCatalog.get(names[0]))["class_names"] if names else []


def convert(arguments: argparse.Namespace) -> list[str]:
    """Convert as a command line says, and return what to tell."""
    path, target = _local(arguments.source), target_of(arguments.target)
    source = read_source(path, arguments.allow_unsafe)
    cfg = configuration(source, arguments.config_file, arguments.opts)
    dropped = len(source.original) - len(source.state)
    author = source.author or TITLES[source.kind]
    if target == "hugging_face":
        _write_folder(source, cfg, arguments)
    elif target == "published":
        weight = cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT if cfg else 0.1
        write_published(source.state, author, weight, arguments.target)
    else:
        write_checkpoint(source.state, _metadata(source, cfg, arguments), author, arguments.target)
    note = f" (they had {dropped} more)" if dropped > 0 else ""
    lines = [f"{path}: {TITLES[source.kind]}", f"{arguments.target}: {len(source.state)} entries{note}"]
    if source.is_backbone:
        backbone = describe_backbone(source.state)
        keys = " ".join(f"{key} {str(value).replace(' ', '')}" for key, value in backbone.keys.items())
        lines += [f"backbone: {backbone.title}", f"config: MODEL.WEIGHTS {arguments.target} {keys}"]
    return [*lines, *(_verify(source, cfg, path, arguments.target) if arguments.verify else [])]


def _local(name: str) -> Path:
    return Path(name) if Path(name).is_dir() else resolve(name)


def _write_folder(source: SourceWeights, cfg: CfgNode | None, arguments: argparse.Namespace) -> None:
    if source.is_backbone or cfg is None:
        reason = "holds a backbone alone" if source.is_backbone else "does not hold its configuration"
        raise ValueError(
            f"{arguments.source} {reason}; a Hugging Face folder needs a whole model with its configuration. "
            "Give --config-file for a whole model, or a DST ending in .pth, .safetensors or .pkl."
        )
    ignore = source.metadata.get("ignore_value", cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    names = class_names_of(source, cfg)
    write_hugging_face(source.state, cfg, names, ignore, arguments.reduce_labels, arguments.target)


def _metadata(source: SourceWeights, cfg: CfgNode | None, arguments: argparse.Namespace) -> dict[str, object]:
    if cfg is None or source.is_backbone:
        metadata = dict(source.metadata)
    else:
        names = SimpleNamespace(stuff_classes=class_names_of(source, cfg))
        metadata = {**describe(cfg, names), **{key: value for key, value in source.metadata.items() if value}}
        metadata["config"] = cfg.dump()
    return {**metadata, "license": arguments.licence or metadata.get("license", "")}


def _verify(source: SourceWeights, cfg: CfgNode | None, path: Path, target: Path) -> list[str]:
    if source.kind in ("resnet", "swin_release", "timm_swin"):
        difference, where = compare_backbone(source.kind, source.original, source.state, load_config())
    elif source.kind == "hugging_face" or target.is_dir():
        assert cfg is not None, "refused before anything was written"
        difference, where = compare_model(cfg, source.state, path if path.is_dir() else target)
    else:
        again = read_source(target)
        same = again.state.keys() == source.state.keys() and all(
            bool((again.state[name] == value).all()) for name, value in source.state.items()
        )
        if not same:
            raise ValueError(f"{target} does not hold the weights of {path}.")
        return ["verified: read back, every entry is the same"]
    if not difference < TOLERANCE:
        raise ValueError(f"The two sides differ: {difference:.2e} of the largest value in {where} (of 1e-4).")
    return [f"verified: largest difference {difference:.2e} of the largest value, in {where}"]


def inspect(arguments: argparse.Namespace) -> list[str]:
    """Return what there is to say of a file."""
    path = _local(arguments.source)
    source = read_source(path, arguments.allow_unsafe)
    lines = describe_source(path, source)
    if arguments.config_file:
        cfg = load_config(arguments.config_file, arguments.opts)
        cfg.MODEL.DEVICE = "cpu"
        is_ours = source.kind in ("mask_former", "published")
        state = source.original if is_ours else source.state
        names = class_names_of(source._replace(names=[]), cfg)
        _, report = fit_weights(state, build_model(cfg), str(path), source.names, names)
        lines += str(report).splitlines()
    return lines


def describe_source(path: Path, source: SourceWeights) -> list[str]:
    """Return lines "what: value" about a file or folder; what is not known is left out."""
    metadata = source.metadata
    size = sum(
        file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()) if file.is_file()
    )
    kind = "folder" if path.is_dir() else FORMATS[file_kind(path)]
    values = sum(value.numel() for value in source.original.values())
    rows: list[tuple[str, Any]] = [
        ("file", f"{path} ({kind}, {size / 2**20:.1f} MB)"),
        ("layout", TITLES[source.kind]),
        ("origin", source.author),
        ("entries", f"{len(source.original)} ({values:,} numbers)"),
        ("backbone", _backbone(source)),
        ("classes", _classes(source)),
        ("queries", source.state[QUERIES].shape[0] if QUERIES in source.state else ""),
        ("iteration", metadata.get("iteration")),
        ("scores", _scores(metadata.get("metrics"))),
        ("licence", metadata.get("license") or ""),
        ("config", "in the file" if metadata.get("config") or source.keys else "not in the file"),
    ]
    return [f"{name:10} {value}" for name, value in rows if value not in (None, "", {})]


def _backbone(source: SourceWeights) -> str:
    prefix = "" if source.is_backbone else "backbone."
    return describe_backbone(
        {name.removeprefix(prefix): value for name, value in source.state.items() if name.startswith(prefix)}
    ).title


def _classes(source: SourceWeights) -> str:
    counts = [
        len(source.state[name]) - ("class_embed" in name) for name in CLASSIFIERS if name in source.state
    ]
    if not counts and not source.names:
        return ""
    names = ", ".join(source.names[:6]) + (" ..." if len(source.names) > 6 else "")
    return f"{counts[0] if counts else len(source.names)} ({names or 'names not in the file'})"


def _scores(metrics: Any) -> str:
    if not isinstance(metrics, dict):
        return ""
    # A score of each class would be a wall.
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if "-" not in name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return 1 where it cannot be done, after one line on standard error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    is_inspection = argv[:1] == ["inspect"]
    parser = argument_parser(is_inspection)
    arguments = parser.parse_args(argv[1:] if is_inspection else argv)
    try:
        lines = inspect(arguments) if is_inspection else convert(arguments)
    except (ValueError, KeyError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
