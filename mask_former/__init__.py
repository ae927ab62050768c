"""MaskFormer on Detectron2: importing the package registers its models and data sets."""

import sys
from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"


def _require_third_party() -> None:
    """Name the command that installs what pip cannot, where that is missing."""
    missing = {"cv2": "opencv", "detectron2": "detectron2"}
    missing = {module: folder for module, folder in missing.items() if find_spec(module) is None}
    if not missing:
        return
    package = Path(__file__).parent
    folders = [parent / "third_party" for parent in (package, package.parent)]
    root = next(folder for folder in folders if folder.is_dir())
    commands = [f"{sys.executable} {root / folder / 'install.py'}" for folder in missing.values()]
    message = f"mask_former needs {' and '.join(missing)}; to install: {' && '.join(commands)}"
    # A program ends with this line, an import in the user's code with a traceback.
    raise SystemExit(message) if sys.argv[:1] == ["-m"] else ModuleNotFoundError(message)


# `python -m mask_former` lists the programs, for which nothing has to be imported.
if sys.argv[:1] != ["-m"] or sys.orig_argv[-len(sys.argv)] != "mask_former":
    _require_third_party()

    # OpenMP is configured before torch is imported.
    from mask_former.cpu import configure_threads

    configure_threads()

    from mask_former import data, model_zoo, modeling
    from mask_former.config import add_mask_former_config, load_config
    from mask_former.inference.tta import SemanticSegmentorWithTTA
    from mask_former.modeling.mask_former import MaskFormer
    from mask_former.prediction.predictor import Predictor

__all__ = [
    "MaskFormer",
    "Predictor",
    "SemanticSegmentorWithTTA",
    "add_mask_former_config",
    "data",
    "load_config",
    "model_zoo",
    "modeling",
]
