"""third_party/detectron2/install.py: what it refuses, what it keeps, and what it builds."""

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "third_party" / "detectron2"


@pytest.fixture(scope="module")
def install():
    sys.path.insert(0, str(FOLDER))
    try:
        import install

        yield install
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def sdist(install, tmp_path_factory) -> Path:
    if "+mf." not in importlib.metadata.version("detectron2"):
        pytest.skip("another Detectron2 is installed, so set-up has not fetched the sdist")
    return install.fetch(tmp_path_factory.mktemp("fetch"))


def run_install(*arguments: str, python: tuple = (sys.executable,), **environment: str):
    return subprocess.run(
        [*python, str(FOLDER / "install.py"), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def the_only_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


def test_check_passes_on_what_is_installed():
    done = run_install("--check")
    assert done.returncode == 0, done.stderr
    assert "passes its checks" in done.stdout


def test_installing_again_changes_nothing(install):
    if importlib.metadata.version("detectron2") != install.VERSION:
        pytest.skip("another Detectron2 is installed")
    done = run_install()
    assert done.returncode == 0
    assert "already" in the_only_line(done.stdout)


def test_one_flipped_byte_is_refused(install, sdist, tmp_path):
    data = bytearray(sdist.read_bytes())
    data[len(data) // 2] ^= 1
    corrupted = tmp_path / sdist.name
    corrupted.write_bytes(data)
    done = run_install("--sdist", str(corrupted))
    assert done.returncode != 0
    line = the_only_line(done.stderr)
    assert str(corrupted) in line
    assert install.SDIST_SHA256 in line


def test_nothing_of_a_foreign_sdist_runs(tmp_path):
    witness = tmp_path / "it_ran"
    (tmp_path / "setup.py").write_text(f"open({str(witness)!r}, 'w')\n")
    hostile = tmp_path / "detectron2_cdo-0.5.tar.gz"
    with tarfile.open(hostile, "w:gz") as archive:
        archive.add(tmp_path / "setup.py", "detectron2_cdo-0.5/setup.py")
    assert run_install("--sdist", str(hostile)).returncode != 0
    assert not witness.exists()


def test_missing_sdist_is_named(tmp_path):
    done = run_install("--sdist", str(tmp_path / "absent.tar.gz"))
    assert done.returncode != 0
    assert "absent.tar.gz: no such file" in the_only_line(done.stderr)


def test_missing_torch_is_one_line():
    done = run_install(python=(sys.executable, "-S"))
    assert done.returncode != 0
    assert "pip install torch" in the_only_line(done.stderr)


def test_another_detectron2_is_kept(tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("")
    (tmp_path / "detectron2-0.6.dist-info").mkdir()
    (tmp_path / "detectron2-0.6.dist-info" / "METADATA").write_text("Name: detectron2\nVersion: 0.6\n")
    done = run_install(PYTHONPATH=str(tmp_path))
    assert done.returncode == 0
    assert "found Detectron2 0.6" in the_only_line(done.stdout)


def test_no_network_is_one_line(install, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(install.InstallError, match=r"no network\? then give the file with --sdist"):
        install.fetch(tmp_path)
    assert not (tmp_path / "cache").exists()


def test_damaged_cache_is_fetched_again(install, sdist, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    damaged = tmp_path / "mask_former" / sdist.name
    damaged.parent.mkdir()
    damaged.write_bytes(b"not an sdist")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(install.InstallError, match="could not download"):
        install.fetch(tmp_path)
    assert not damaged.exists()


def test_wheel_holds_licence_notice_and_edited_files(install, sdist, tmp_path):
    wheel = install.build(sdist, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(f"{install.DIST_INFO}/METADATA").decode()
        transform = archive.read("detectron2/data/transforms/transform.py").decode()
    assert f"{install.DIST_INFO}/LICENSE" in names
    assert "detectron2/projects/deeplab/__init__.py" in names
    assert any(name.startswith("detectron2/model_zoo/configs/") for name in names)
    assert not any(name.startswith(("tools/", "projects/")) for name in names)
    assert "modified files" in metadata
    assert "- detectron2/data/transforms/transform.py" in metadata
    assert "Image.LINEAR" not in transform


def test_an_edit_that_matches_another_number_of_times_is_refused(install, sdist, monkeypatch):
    files = install.read_sources(sdist)
    name = "detectron2/layers/wrappers.py"
    files[name] += b"    return F.cross_entropy(input, target, **kwargs)\n"
    with pytest.raises(install.InstallError, match=r"wrappers\.py holds .* 2 times, expected 1"):
        install.apply_edits(files)


def test_every_edit_says_why(install):
    assert len(install.edits.EDITS) >= 31
    assert all(len(edit.why) > 10 and edit.old != edit.new for edit in install.edits.EDITS)
