"""Build and install Detectron2 0.5 as a pure-Python wheel, from the sdist on PyPI and the list in edits.py.

    python third_party/detectron2/install.py            install, unless some Detectron2 is there already
    python third_party/detectron2/install.py --check    test the installed one, change nothing

Standard library only. Nothing of the sdist runs before its hash is verified, and the environment changes
in a single step, the installation of the finished wheel.
"""

import argparse
import base64
import compileall
import hashlib
import importlib.util
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import edits

# Raise the number behind "mf" whenever edits.py changes, so that pip replaces an older build.
VERSION = "0.5+mf.2"
SDIST = "detectron2-cdo==0.5"
SDIST_SHA256 = "53c9e79e9cc943e80419c588ea44b5479507a8628ed14a4e06bd093e29311b18"
# Newer releases refuse this sdist, because one of its extras names a direct address.
PIP = "pip==25.3"
PIP_SHA256 = "9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd"
OLDEST_PYTHON = (3, 10)

# Folders of the sdist, and where they lie in the wheel. Its folder `tools` stays out: it would be
# installed under that very name.
FOLDERS = {
    "detectron2": "detectron2",
    "projects/PointRend/point_rend": "detectron2/projects/point_rend",
    "projects/DeepLab/deeplab": "detectron2/projects/deeplab",
    "projects/Panoptic-DeepLab/panoptic_deeplab": "detectron2/projects/panoptic_deeplab",
}
DIST_INFO = "detectron2-" + VERSION + ".dist-info"
METADATA = """\
Metadata-Version: 2.1
Name: detectron2
Version: {version}
Summary: Detectron2 0.5 without compiled operators, edited to run on today's libraries
License: Apache-2.0
License-File: LICENSE
Requires-Python: >=3.10
Requires-Dist: torch>=2.6
Requires-Dist: torchvision
Requires-Dist: numpy>=1.24
Requires-Dist: pillow>=9.5
Requires-Dist: matplotlib>=3.7
Requires-Dist: pycocotools>=2.0.8
Requires-Dist: termcolor
Requires-Dist: yacs>=0.1.8
Requires-Dist: tabulate
Requires-Dist: cloudpickle
Requires-Dist: tqdm
Requires-Dist: tensorboard>=2.14
Requires-Dist: fvcore>=0.1.5,<0.1.6
Requires-Dist: iopath>=0.1.9
Requires-Dist: omegaconf>=2.1
Requires-Dist: hydra-core>=1.1

This is Detectron2 0.5 (Apache-2.0, LICENSE enclosed) with modified files. These were changed:

{changed}

The complete list of edits, each with its reason, is part of the source of the project mask_former.
"""
WHEEL = "Wheel-Version: 1.0\nGenerator: mask_former\nRoot-Is-Purelib: true\nTag: py3-none-any\n"

CHECKS = """
import detectron2.checkpoint, detectron2.config, detectron2.data, detectron2.engine, detectron2.evaluation
import detectron2.export, detectron2.model_zoo, detectron2.modeling, detectron2.projects.deeplab
import detectron2.projects.point_rend, detectron2.utils.analysis
from detectron2.utils.collect_env import collect_env_info
collect_env_info()
"""


class InstallError(Exception):
    """Something the user has to know and can mend; its text is one line."""


def main():
    """Install or check, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="test the installed Detectron2, change nothing")
    parser.add_argument("--sdist", metavar="PATH", help="use this file instead of downloading " + SDIST)
    parser.add_argument("--constraint", metavar="FILE", help="pip constraints for Detectron2's own needs")
    arguments = parser.parse_args()
    try:
        require_what_it_builds_on()
        if arguments.check:
            check()
        else:
            install(arguments.sdist, arguments.constraint)
    except InstallError as error:
        sys.stderr.write(f"install.py: error: {error}\n")
        return 1
    return 0


def require_what_it_builds_on():
    """Refuse what cannot work before anything is fetched."""
    if sys.version_info < OLDEST_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        raise InstallError(f"Python {found} is too old, 3.10 or newer is needed: run this with another one")
    for module, package in (("torch", "torch"), ("cv2", "opencv-python")):
        if importlib.util.find_spec(module) is None:
            raise InstallError(
                f"{sys.executable} has no {module}, which must be installed first: `pip install {package}`"
            )


def install(sdist, constraint):
    """Install the wheel, unless this build of it or somebody else's Detectron2 is there."""
    if sdist is not None:
        verify(pathlib.Path(sdist))
    there = installed_version()
    if there == VERSION:
        say(f"Detectron2 {VERSION} is installed already")
        return
    if there is not None and "+mf." not in there:
        say(f"found Detectron2 {there}, which is not ours: keeping it, nothing is changed")
        return
    with tempfile.TemporaryDirectory() as work:
        source = pathlib.Path(sdist) if sdist is not None else fetch(pathlib.Path(work))
        wheel = build(source, pathlib.Path(work))
        command = [sys.executable, "-m", "pip", "install", "--quiet", str(wheel)]
        if constraint is not None:
            command += ["--constraint", constraint]
        run(command, "pip could not install the wheel")
    check()
    say(f"installed Detectron2 {VERSION}")


def installed_version():
    """Return the version of an importable Detectron2, or None."""
    import importlib.metadata  # not in Pythons that require_what_it_builds_on has yet to refuse

    try:
        return importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return "(unpackaged)" if importlib.util.find_spec("detectron2") is not None else None


def fetch(work):
    """Return the path of the sdist: from the cache, or downloaded into it, in both cases verified."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    cached = cache / "mask_former" / ("detectron2-0.5-" + SDIST_SHA256[:16] + ".tar.gz")
    if cached.exists():
        try:
            verify(cached)
        except InstallError:
            cached.unlink()
        else:
            return cached
    say("downloading " + SDIST)
    own_pip, downloads = work / "pip", work / "downloads"
    failed = "could not download %s from PyPI (no network? then give the file with --sdist PATH)"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    pinned = ["--no-deps", "--require-hashes", "-r"]
    run(
        [*pip, "install", "--target", str(own_pip), *pinned, pin(work, PIP, PIP_SHA256)],
        failed % PIP,
    )
    # pip verifies the hash before it executes setup.py for the metadata; setup.py imports torch.
    run(
        [
            *(*pip, "download", "--no-build-isolation", "--no-binary", ":all:"),
            *("--dest", str(downloads), *pinned, pin(work, SDIST, SDIST_SHA256)),
        ],
        failed % SDIST,
        dict(os.environ, PYTHONPATH=str(own_pip)),
    )
    (sdist,) = downloads.iterdir()
    verify(sdist)
    cached.parent.mkdir(parents=True, exist_ok=True)
    partial = cached.with_name(cached.name + f".{os.getpid()}.partial")
    shutil.copyfile(str(sdist), str(partial))
    os.replace(str(partial), str(cached))
    return cached


def pin(work, requirement, sha256):
    """Write a requirements file that accepts one file only, and return its path."""
    path = work / (requirement.split("==")[0] + ".txt")
    path.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    return str(path)


def verify(sdist):
    """Raise unless the file is, byte for byte, the sdist that the edits were written for."""
    if not sdist.is_file():
        raise InstallError(f"{sdist}: no such file, expected the sdist of {SDIST}")
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if found != SDIST_SHA256:
        raise InstallError(
            f"{sdist} has sha256 {found}, expected {SDIST_SHA256}: nothing of it was run; fetch {SDIST} again"
        )


def build(sdist, work):
    """Write the wheel of a verified sdist into the folder `work` and return its path."""
    files = read_sources(sdist)
    changed = apply_edits(files)
    listing = "\n".join("- " + name for name in changed)
    files[DIST_INFO + "/METADATA"] = METADATA.format(version=VERSION, changed=listing).encode()
    files[DIST_INFO + "/WHEEL"] = WHEEL.encode()
    record = io.StringIO()
    for name, data in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record.write(f"{name},sha256={digest},{len(data)}\n")
    record.write(DIST_INFO + "/RECORD,,\n")
    files[DIST_INFO + "/RECORD"] = record.getvalue().encode()
    path = work / ("detectron2-" + VERSION + "-py3-none-any.whl")
    with zipfile.ZipFile(str(path), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, (2021, 7, 23, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return path


def read_sources(sdist):
    """Return the files of the wheel, name to bytes, as the sdist has them."""
    files = {}
    with tarfile.open(str(sdist)) as archive:
        for member in archive:
            if not member.isfile():
                continue
            name = member.name.partition("/")[2]
            if name == "LICENSE":
                files[DIST_INFO + "/LICENSE"] = archive.extractfile(member).read()
            for folder, place in FOLDERS.items():
                if name.startswith(folder + "/"):
                    files[place + name[len(folder) :]] = archive.extractfile(member).read()
    return files


def apply_edits(files):
    """Apply every edit to `files` in place and return the sorted names of the files that changed."""
    for edit in edits.EDITS:
        name = "detectron2/" + edit.file
        text = files[name].decode()
        found = text.count(edit.old)
        if found != edit.count:
            raise InstallError(
                f"{name} holds {edit.old!r} {found} times, expected {edit.count}: edits.py is wrong"
            )
        files[name] = text.replace(edit.old, edit.new).encode()
    return sorted({"detectron2/" + edit.file for edit in edits.EDITS})


def check():
    """Raise unless the installed Detectron2 imports what the project needs and is free of known trouble."""
    there = installed_version()
    if there is None:
        raise InstallError("Detectron2 is not installed: run this without --check")
    folder = pathlib.Path(importlib.util.find_spec("detectron2").origin).parent
    aliases = re.compile(r"\bnp\.(int|float|str|bool|object)\b")
    for path in sorted(folder.rglob("*.py")) if "+mf." in there else ():
        found = aliases.search(path.read_text())
        if found:
            raise InstallError(f"{path} uses {found.group()}, which NumPy has removed")
    if not compileall.compile_dir(str(folder), quiet=2):
        raise InstallError(f"{folder} holds a file that Python cannot compile")
    run([sys.executable, "-c", CHECKS], f"Detectron2 {there} is installed but does not import")
    say(f"Detectron2 {there} in {folder} passes its checks")


def run(command, problem, environment=None):
    """Run a command quietly; where it fails raise `problem` with the last line of what it said."""
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if line.strip()] or ["no output"]
        raise InstallError(f"{problem}: {lines[-1].strip()}")


def say(text):
    """Tell the user one line."""
    sys.stdout.write(f"install.py: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
