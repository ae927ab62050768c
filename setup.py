"""Packaging of mask_former. Tool settings live in pyproject.toml, pinned versions in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "mask_former" / "__init__.py").read_text(), re.MULTILINE
)

setup(
    name="mask-former",
    version=VERSION.group(1),
    description="MaskFormer: semantic, instance and panoptic segmentation with one model, on Detectron2",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # The configurations, and what installs Detectron2 and OpenCV, travel inside the package.
    packages=[
        *find_packages(include=["mask_former", "mask_former.*"]),
        *("mask_former.configs", "mask_former.third_party"),
    ],
    package_dir={"mask_former.configs": "configs", "mask_former.third_party": "third_party"},
    package_data={
        "mask_former": ["py.typed", "data/*.json", "data/classes/*.json"],
        "mask_former.configs": ["**/*.yaml"],
        "mask_former.third_party": ["*/*.py", "*/*.md"],
    },
    scripts=["train_net.py"],
    # Not listed: detectron2, which is not on PyPI (third_party/detectron2 installs it), and OpenCV, of
    # which there are two packages that exclude each other (`make setup` picks the one that works).
    # The lower bounds are those of constraints-lowest.txt, which `make test-lowest` tests.
    install_requires=[
        "torch>=2.6",
        "numpy>=1.24",
        "scipy>=1.10",
        "pillow>=9.5",
        "pycocotools>=2.0.8",
        "fvcore>=0.1.5,<0.1.6",
        "safetensors>=0.4",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": ["pytest", "pytest-timeout", "pytest-xdist", "h5py", "av", "cityscapesscripts"],
        "cityscapes": ["cityscapesscripts"],
        "bridge": ["transformers", "timm"],
        "timm": ["timm>=1.0.31"],
        "export": [
            *("onnx", "onnxscript", "onnxruntime", "openvino", "starlette", "uvicorn"),
            # It refuses the numpy that later Pythons get.
            "nncf; python_version < '3.12'",
        ],
        "video": ["av"],
        "lint": ["ruff", "mypy"],
    },
)
