"""Weight files are read without running, importing or making what they have no need of."""

import collections
import json
import os
import pickle
import random
import re
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import hostile_files
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file

from mask_former.checkpoint import described_config, read_checkpoint
from mask_former.checkpoint.reading import DamagedFileError, UnsafeFileError
from mask_former.formats import limit_pixels, picture_size
from mask_former.prediction.inputs import load_all

DEMO = Path(__file__).parent.parent / "demo"
REFUSED = (UnsafeFileError, DamagedFileError)


def weights() -> collections.OrderedDict:
    torch.manual_seed(3)
    first = torch.randn(3, 4)
    return collections.OrderedDict(
        first=first,
        view=first[1:, ::2],
        count=torch.tensor(7),
        half=torch.randn(500).half(),
        none=torch.zeros(0, 3),
        flags=torch.tensor([True, False]),
    )


def arrays() -> dict[str, np.ndarray]:
    return {
        "c_order": np.arange(12, dtype=np.float32).reshape(3, 4),
        "f_order": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "big_endian": np.arange(4, dtype=">f4"),
        "flags": np.array([True, False]),
        "scalar": np.array(2.5),
        "none": np.zeros((0, 3), np.float16),
    }


PLAIN = {
    "author": "Ä",
    "list": [1, 2.5, None, (True, -3)],
    "large": 2**70,
    "set": {1, "b"},
    "raw": b"\x00\xff",
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_arrays_and_containers_are_read_as_python_reads_them(tmp_path, protocol):
    file = tmp_path / "weights.pkl"
    file.write_bytes(pickle.dumps({"model": arrays(), "number": np.float32(1.5), **PLAIN}, protocol))
    checkpoint = read_checkpoint(file)
    assert checkpoint["number"] == 1.5
    assert {name: checkpoint[name] for name in PLAIN} == PLAIN
    for name, expected in arrays().items():
        np.testing.assert_array_equal(checkpoint["model"][name].numpy(), expected)
    assert checkpoint["model"]["big_endian"].tolist() == [0, 1, 2, 3]
    assert checkpoint["model"]["f_order"][1].tolist() == [4, 5, 6, 7]


def write_as(kind, content, file):
    if kind == "pickle":
        file.write_bytes(pickle.dumps(content, 2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "archive")


@pytest.mark.parametrize("kind", ["archive", "old torch file", "pickle"])
def test_tensors_are_read_as_they_were_written(tmp_path, kind):
    file = tmp_path / "weights"
    write_as(kind, {"model": weights(), **PLAIN}, file)
    checkpoint = read_checkpoint(file)
    assert {name: checkpoint[name] for name in PLAIN} == PLAIN
    for name, expected in weights().items():
        assert checkpoint["model"][name].dtype == expected.dtype
        assert torch.equal(checkpoint["model"][name], expected), name


def test_versions_of_modules_are_kept(tmp_path):
    state = torch.nn.BatchNorm1d(3).state_dict()
    for kind in ("archive", "old torch file"):
        write_as(kind, {"model": state}, tmp_path / "w")
        assert read_checkpoint(tmp_path / "w")["model"]._metadata[""] == {"version": 2}


def test_byte_strings_of_python_2_are_read(tmp_path):
    # What Python 2 wrote for {"a": array([1, 2], dtype="<f4")}, by hand.
    data = np.array([1, 2], "<f4").tobytes()
    stream = (
        b"\x80\x02}U\x01a"
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K\x02\x85cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08" + data + b"tbs."
    )
    (tmp_path / "w.pkl").write_bytes(stream)
    assert read_checkpoint(tmp_path / "w.pkl")["model"]["a"].tolist() == [1, 2]


def test_safetensors_are_read(tmp_path):
    expected = {"a": torch.randn(2, 3), "b": torch.arange(4)}
    save_file(expected, str(tmp_path / "w.safetensors"))
    tensors = read_checkpoint(tmp_path / "w.safetensors")["model"]
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())


@pytest.mark.parametrize("name", hostile_files.code_runners(""))
def test_files_that_would_run_code_are_refused(tmp_path, name):
    witness = tmp_path / "witness"
    file = tmp_path / "weights.pkl"
    file.write_bytes(hostile_files.code_runners(str(witness))[name])
    before = set(sys.modules)
    with pytest.raises(REFUSED, match=re.escape(str(file))):
        read_checkpoint(file)
    assert not witness.exists()
    assert "antigravity" not in sys.modules
    imported = set(sys.modules) - before
    assert not {module for module in imported if not module.startswith("encodings.")}  # zip names need one


def test_the_refusal_names_the_global_and_the_way_out(tmp_path):
    file = tmp_path / "weights.pkl"
    file.write_bytes(hostile_files.code_runners("x")["os.system"])
    with pytest.raises(UnsafeFileError, match=r"names 'os\.system'.*allow_unsafe"):
        read_checkpoint(file)


def test_the_flag_reads_without_restriction(tmp_path):
    witness = tmp_path / "witness"
    file = tmp_path / "weights.pkl"
    file.write_bytes(hostile_files.code_runners(str(witness))["builtins.open"])
    with pytest.raises(DamagedFileError, match="holds a TextIOWrapper; expected a dict of weights"):
        read_checkpoint(file, allow_unsafe=True)
    assert witness.exists()  # which also shows that the files of this corpus work


def test_what_only_torch_refuses_is_named_with_the_way_out(tmp_path):
    torch.save({"model": weights(), "score": np.float32(1)}, tmp_path / "w.pth")
    with pytest.raises(UnsafeFileError, match=r"multiarray\.scalar.*allow_unsafe"):
        read_checkpoint(tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth", allow_unsafe=True)["score"] == 1


@pytest.mark.parametrize("name", hostile_files.damaged())
def test_damaged_files_are_refused(tmp_path, name):
    file = tmp_path / "weights.pkl"
    file.write_bytes(hostile_files.damaged()[name])
    with pytest.raises(DamagedFileError, match=re.escape(str(file))):
        read_checkpoint(file)


READ_ALL = """
import resource, sys, time
from pathlib import Path
from mask_former.checkpoint import described_config, read_checkpoint
from mask_former.checkpoint.reading import DamagedFileError, UnsafeFileError
for file in sorted(Path(sys.argv[1]).iterdir()):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        read_checkpoint(file)
        outcome = "read"
    except (DamagedFileError, UnsafeFileError):
        outcome = "refused"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(file.name, outcome, grown, time.monotonic() - start, sep="\\t")
"""


def test_files_that_ask_for_too_much_are_refused_in_little_memory_and_time(tmp_path):
    corpus = hostile_files.memory_and_time_takers()
    for name, data in corpus.items():
        assert len(data) < 2**21
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-W", "ignore", "-c", READ_ALL, str(tmp_path)]
    lines = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120
    ).stdout.splitlines()
    rows = [line.split("\t") for line in lines]
    assert {row[0] for row in rows} == set(corpus)
    for name, outcome, megabytes, seconds in rows:
        assert outcome == "refused", name
        assert float(megabytes) < 150, name
        assert float(seconds) < 10, name


def good_files() -> list[bytes]:
    """A small file of each kind."""
    streams = []
    for protocol in (0, 2, 4):
        content = {"model": {**arrays(), **weights()}, "number": np.float32(1.5), **PLAIN}
        streams.append(pickle.dumps(content, protocol))
    for zipped in (True, False):
        streams.append(hostile_files.saved({"model": weights(), **PLAIN}, zipped))
    return [
        *streams,
        save(
            {name: value.clone() for name, value in weights().items()},
            {"mask_former": json.dumps({"class_names": ["a"]})},
        ),
    ]


def mutated(data: bytes, draws: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draws.randint(1, 2)):
        kind, at = draws.randrange(4), draws.randrange(len(changed))
        if kind == 0:
            changed[at] = draws.randrange(256)
        elif kind == 1:
            del changed[at : at + draws.randint(1, 20)]
        elif kind == 2:
            changed[at:at] = changed[draws.randrange(len(changed)) :][: draws.randint(1, 20)]
        else:
            changed[at] ^= 1 << draws.randrange(8)
        if not changed:
            break
    return bytes(changed)


def test_2000_mutations_of_good_files_load_or_are_refused(tmp_path):
    draws = random.Random(11)
    originals = good_files()
    outcomes = collections.Counter()
    file = tmp_path / "weights"
    start = time.monotonic()
    for number in range(2000):
        file.write_bytes(mutated(originals[number % len(originals)], draws))
        try:
            read_checkpoint(file)
            outcomes["read"] += 1
        except REFUSED:
            outcomes["refused"] += 1
    assert sum(outcomes.values()) == 2000
    assert min(outcomes.values()) > 200  # the mutations are neither all fatal nor all harmless
    assert time.monotonic() - start < 120
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 < 4


THROUGH_DOORS = """
import contextlib, io, json, logging, resource, sys, time
from pathlib import Path
import demo
from mask_former.convert import main as convert
from mask_former.prediction.predictor import Predictor

def api(file):
    try:
        Predictor.from_checkpoint(file, device="cpu")
    except (ValueError, KeyError) as error:
        return 1, str(error.args[0])
    return 0, ""

def program(main, *arguments):
    with contextlib.redirect_stderr(io.StringIO()) as shown, contextlib.redirect_stdout(io.StringIO()):
        status = main(list(arguments))
    return status, shown.getvalue().strip("\\n")

logging.disable(logging.CRITICAL)
folder = Path(sys.argv[1])
for number, file in enumerate(sorted(folder.iterdir())):
    doors = {"API": lambda: api(file)}
    if number % 2 == 0:
        doors["inspect"] = lambda: program(convert, "inspect", str(file))
        doors["demo"] = lambda: program(demo.main, "--weights", str(file), "--input", "x", "--output", "o")
    for door, call in doors.items():
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        status, shown = call()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps([file.name, door, status, shown, grown, time.monotonic() - start]))
"""


def test_no_hostile_file_does_harm_at_any_door(tmp_path):
    corpus = {
        f"code {name}": data for name, data in hostile_files.code_runners(str(tmp_path / "ran")).items()
    }
    corpus |= {f"damage {name}": data for name, data in hostile_files.damaged().items()}
    corpus |= {f"cut {name}": data for name, data in hostile_files.cut_short().items()}
    corpus |= {f"config {name[:60]}": data for name, data in hostile_files.absurd_configurations().items()}
    assert len(corpus) + len(hostile_files.memory_and_time_takers()) >= 150
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, (name, data) in enumerate(corpus.items()):
        (folder / f"{number:03d} {re.sub(r'[^a-zA-Z0-9 ]', '_', name)}.pth").write_bytes(data)
    command = [sys.executable, "-W", "ignore", "-c", THROUGH_DOORS, str(folder)]
    path = os.pathsep.join([str(DEMO), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len({row[0] for row in rows}) == len(corpus)
    assert not (tmp_path / "ran").exists()
    for name, door, status, shown, megabytes, seconds in rows:
        # What a file says of its model matters to those that build one.
        assert status != 0 or (door == "inspect" and " config " in name), (name, door)
        assert len(shown) - len(str(folder)) <= 300, (name, door, shown)
        assert shown.isprintable(), (name, door, shown)
        assert status == 0 or name in shown, (name, door, shown)
        assert megabytes < 1536, (name, door)
        assert seconds < 20, (name, door)


def test_descriptions_are_checked_and_lose_what_a_terminal_would_obey(tmp_path):
    metadata = {
        "class_names": ["sky\x1b[2J", "x" * 10_000],
        "class_colors": [[1, 2], "red"],
        "thing_classes": {"a": 1},
        "license": "free\n\x07" * 1000,
        "metrics": {"PQ": "high"},
        "mine": "kept\x1b",
    }
    torch.save({"model": {"a": torch.zeros(1)}, "metadata": metadata}, tmp_path / "w.pth")
    found = read_checkpoint(tmp_path / "w.pth")["metadata"]
    assert set(found) == {"class_names", "license", "mine"}
    assert found["class_names"][0] == "sky [2J"
    assert len(found["class_names"][1]) == 200
    assert found["license"].isprintable()
    assert len(found["license"]) == 1000
    assert found["mine"] == "kept "


def bomb(file, side=13_000):
    """A PNG of side x side black pixels, drawn row by row."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_a_folder_with_a_bomb_and_a_pipe_costs_these_alone(tmp_path):
    bomb(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "c.png")
    (tmp_path / "d.png").symlink_to("/dev/zero")
    assert (tmp_path / "a.png").stat().st_size < 200_000
    limit_pixels(89_478_485)
    errors = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (image,) = load_all(str(tmp_path), errors.append)
    assert image.name.endswith("c.png")
    assert ["13000x13000" in str(errors[0]), "INPUT.MAX_PIXELS" in str(errors[0])] == [True, True]
    assert ["regular file" in str(error) for error in errors] == [False, True, True]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_the_key_lifts_the_limit_on_pixels_and_a_file_cannot(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    try:
        limit_pixels(599)
        with pytest.raises(ValueError, match=r"a\.png .*30x20 pixels, over 599, see INPUT\.MAX_PIXELS"):
            picture_size(tmp_path / "a.png")
        limit_pixels(600)
        assert picture_size(tmp_path / "a.png") == (30, 20)
        cfg = described_config({"config": "INPUT: {MAX_PIXELS: 0}"})
        assert cfg.INPUT.MAX_PIXELS == 89_478_485
    finally:
        limit_pixels(89_478_485)
