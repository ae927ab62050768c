"""Who may import whom: the table of the house, read from the code by `ast`."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mask_former"

# Module -> modules of ours that it may import; a package stands for all that is in it.
ALLOWED = {
    "__main__": set(),
    "cpu": set(),
    "config": set(),
    "solver": set(),
    "formats": set(),
    "data": {"data", "formats"},
    "evaluation": {"evaluation", "formats", "inference"},
    # Logits to results; nothing with weights.
    "inference": {"inference"},
    "inference.tta": {"inference", "formats"},
    # The model.
    "modeling.structures": set(),
    "modeling.losses": set(),
    "modeling.transformer": set(),
    "modeling.window_attention": {"modeling.transformer"},
    "modeling.swin": {"modeling.freezing", "modeling.window_attention"},
    "modeling.freezing": set(),
    "modeling.timm_nets": set(),
    "modeling.timm_backbone": {"modeling.freezing", "modeling.timm_nets"},
    "modeling.points": {"modeling.losses"},
    "modeling.matcher": {"modeling.losses", "modeling.points", "modeling.structures"},
    "modeling.criterion": {"modeling.losses", "modeling.points", "modeling.structures"},
    "modeling.pixel_decoder": {"modeling.transformer", "modeling.structures"},
    "modeling.transformer_decoder": {"modeling.transformer", "modeling.structures"},
    "modeling.head": {"modeling.pixel_decoder", "modeling.transformer_decoder", "modeling.structures"},
    "modeling.per_pixel": {"modeling.pixel_decoder", "modeling.head", "inference"},
    "modeling.mask_former": {
        *("modeling.criterion", "modeling.matcher", "modeling.structures"),
        "inference",
    },
    "modeling.build": {
        *(
            "modeling.freezing",
            "modeling.per_pixel",
            "modeling.swin",
            "modeling.timm_backbone",
            "modeling.transformer",
        ),
        *("inference", "config"),
    },
    "modeling.preparation": {"modeling"},
    # Weight files.
    "checkpoint": {"checkpoint", "config", "formats", "modeling.head"},
    "conversion": {"conversion", "checkpoint", "formats"},
    "convert": {"conversion", "checkpoint", "config"},
    # Predictions for users.
    "prediction": {
        *("prediction", "config", "checkpoint", "inference", "model_zoo", "formats"),
        *("modeling.build", "modeling.preparation"),
    },
    "model_zoo": {"config", "checkpoint", "modeling.build"},
    # Programs.
    "engine": {
        *("engine", "config", "checkpoint", "data", "evaluation", "inference", "prediction"),
        *("solver", "modeling.build", "modeling.preparation", "formats", "model_zoo", "conversion"),
    },
    "export": {
        *("export", "config", "evaluation", "formats", "inference", "prediction"),
        *("modeling.build", "modeling.per_pixel", "modeling.pixel_decoder"),
        *("modeling.preparation", "modeling.structures", "modeling.transformer_decoder"),
    },
    "replay": {"checkpoint", "engine.failed_steps", "engine.step", "modeling.build", "solver"},
    "benchmark": {
        *("benchmark", "config", "model_zoo", "conversion", "inference"),
        *("modeling", "data", "evaluation", "formats", "solver", "engine.hooks"),
    },
}
BANNED = {"torchvision", "timm", "transformers", "onnx", "av"}
# Imported where it is used, and only if it is installed.
OPTIONAL = {"prediction.video": {"av"}}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported_modules(path: Path) -> set[str]:
    """Return the absolute names of all that a file imports, wherever in the file."""
    package = ["mask_former", *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {name} | {f"{name}.{alias.name}" for alias in node.names}
    return found


def is_module_of_ours(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return name.startswith("mask_former.") and (path.with_suffix(".py").exists() or path.is_dir())


SOURCES = [
    p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "__init__.py" or p.parent.name == "evaluation"
]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_only_what_the_house_allows(path):
    name = module_name(path)
    allowed = ALLOWED.get(name, ALLOWED.get(name.split(".")[0]))
    assert allowed is not None, f"{name} has no row in ALLOWED: decide whom it may import"
    used = {m.removeprefix("mask_former.") for m in imported_modules(path) if is_module_of_ours(m)}
    used -= {"modeling"}  # the folder itself, named on the way to a module in it
    forbidden = {m for m in used if not any(m == a or m.startswith(a + ".") for a in allowed)}
    assert not forbidden, f"{name} imports {sorted(forbidden)}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_no_banned_library(path):
    banned = BANNED - OPTIONAL.get(module_name(path), set())
    assert not {m.split(".")[0] for m in imported_modules(path)} & banned


def test_no_imports_form_a_circle():
    graph = {
        module_name(path): {
            name.removeprefix("mask_former.") for name in imported_modules(path) if is_module_of_ours(name)
        }
        for path in SOURCES
        if path.name != "__init__.py"
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError
