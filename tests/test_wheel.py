"""An installed wheel is whole: it is built, unpacked, and used from an empty folder."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from tiny_runs import ROOT

import mask_former

SOURCES = ("mask_former", "configs", "third_party", "setup.py", "pyproject.toml", "train_net.py")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return the folder of the installed wheel."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in (*SOURCES, "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(source), str(source)]
    subprocess.run(wheel, check=True)
    (file,) = source.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(file)], check=True)
    return target


def run(installed, folder, *arguments):
    """Run Python in an empty folder, with the wheel in front of everything else."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_package_lists_its_programs_without_any_library(installed, tmp_path):
    done = run(installed, tmp_path, "-S", "-m", "mask_former")
    listed = dict(line.split("  ", 1) for line in done.stdout.splitlines()[:-1])
    assert {"train_net.py", "python -m mask_former.convert", "python -m mask_former.evaluation"} <= set(
        listed
    )
    assert all(listed.values())
    assert (installed / "bin" / "train_net.py").is_file()


def test_missing_detectron2_is_one_line_with_the_command(installed, tmp_path):
    done = run(installed, tmp_path, "-S", "-m", "mask_former.convert", "--help")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    installer = line.split()[-1]
    assert installer.endswith("detectron2/install.py")
    assert "--sdist" in run(installed, tmp_path, "-S", installer, "--help").stdout


def test_configurations_are_found_by_name_in_an_empty_folder(installed, tmp_path):
    program = """
import mask_former
from mask_former.config import find_config, load_config
print(mask_former.__version__, find_config("configs/shapes/maskformer_panoptic.yaml"))
print(load_config("shapes/maskformer_panoptic.yaml").MODEL.SEM_SEG_HEAD.NUM_CLASSES)
"""
    lines = run(installed, tmp_path, "-W", "ignore", "-c", program).stdout.splitlines()
    folder = installed / "mask_former"
    assert lines[0] == f"{mask_former.__version__} {folder / 'configs/shapes/maskformer_panoptic.yaml'}"
    assert lines[1] == "11"
    assert (folder / "py.typed").is_file()
    shipped = {path.relative_to(folder / "configs") for path in folder.glob("configs/**/*.yaml")}
    assert shipped == {path.relative_to(ROOT / "configs") for path in ROOT.glob("configs/**/*.yaml")}


def test_unknown_configuration_is_answered_with_near_ones():
    with pytest.raises(
        FileNotFoundError, match=r"shapes/maskformer_panoptics\.yaml is neither.*panoptic\.yaml"
    ):
        mask_former.load_config("shapes/maskformer_panoptics.yaml")


@pytest.mark.parametrize("file", ["CHANGELOG.md", "CITATION.cff"])
def test_files_state_the_version_of_the_package(file):
    found = re.search(r"^(?:version: |## )([\d.]+)", (ROOT / file).read_text(), re.MULTILINE)
    assert found.group(1) == mask_former.__version__
