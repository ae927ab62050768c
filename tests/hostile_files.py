"""Weight files that try to run code, or to take all memory or time: name -> bytes."""

import io
import pickle
import struct
import zipfile

import numpy as np
import torch
import yaml


class Call:
    """Pickled as a call."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def named(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def saved(content, zip_archive=True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zip_archive)
    return stream.getvalue()


def edited_archive(content, change=None, compression=zipfile.ZIP_STORED, extra=()) -> bytes:
    """A torch archive with its data.pkl changed."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(content))) as old, zipfile.ZipFile(result, "w", compression) as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if change and name.endswith("data.pkl") else data)
        for name, data in extra:
            new.writestr(name, data)
    return result.getvalue()


def code_runners(witness: str) -> dict[str, bytes]:
    """Files that would make the file `witness` if anything in them ran."""
    command = f"touch {witness}"
    write = f"open({witness!r}, 'w')"
    system = named("os", "system") + b"(" + text(command) + b"tR"
    getattr_trick = named("builtins", "getattr") + b"(" + named("os", "path") + text("os") + b"tR"
    calls = {
        "os.system": system,
        "posix.system": named("posix", "system") + b"(" + text(command) + b"tR",
        "builtins.eval": named("builtins", "eval") + b"(" + text(write) + b"tR",
        "builtins.exec": named("builtins", "exec") + b"(" + text(write) + b"tR",
        "builtins.open": named("builtins", "open") + b"(" + text(witness) + text("w") + b"tR",
        "builtins.getattr": getattr_trick,
        "subprocess.Popen": named("subprocess", "Popen") + b"(" + text(command) + b"tR",
        "nested reduce": b"]" + b"(" + system + b"e",
        "reduce as a key": b"}" + system + b"N" + b"s",
        "inst opcode": b"(" + text(command) + b"ios\nsystem\n",
        "obj opcode": b"(" + named("os", "system") + text(command) + b"o",
        "newobj opcode": named("os", "_wrap_close") + b")\x81",
        "dotted name": text("torch") + text("os.system") + b"\x93" + b"(" + text(command) + b"tR",
        "name in a memo": text("os")
        + b"q\x000"
        + b"h\x00"
        + text("system")
        + b"\x93("
        + text(command)
        + b"tR",
        "extension registry": b"\x82\x01",
        "numpy.load": named("numpy", "load") + b"(" + text(witness) + b"tR",
        "numpy f2py": named("numpy.testing._private.utils", "runstring") + b"(" + text(write) + b"}tR",
        "numpy memmap": named("numpy", "memmap") + b"(" + text(witness) + text("uint8") + text("w+") + b"tR",
        "torch.load": named("torch", "load") + b"(" + text(witness) + b"tR",
        "torch.hub": named("torch.hub", "load") + b"(" + text(witness) + b"tR",
        "torch jit": named("torch.jit", "load") + b"(" + text(witness) + b"tR",
        "torch storage file": named("torch.storage", "UntypedStorage") + b"(" + text(witness) + b"tR",
        "torch from_file": named("torch", "from_file") + b"(" + text(witness) + b"\x88K\x04tR",
        "torch rebuild from type": named("torch._tensor", "_rebuild_from_type_v2") + b"(NNNNtR",
        "functools.partial": named("functools", "partial") + b"(" + named("os", "system") + b"tR",
        "copyreg": named("copyreg", "_reconstructor") + b"(" + named("os", "_wrap_close") * 2 + b"NtR",
        "numpy subclass": named("numpy.core.multiarray", "_reconstruct")
        + b"("
        + named("numpy", "memmap")
        + b"K\x00\x85C\x01btR",
    }
    files = {name: opcodes(body) for name, body in calls.items()}
    files["builtins.__import__"] = pickle.dumps(Call(__import__, "antigravity"))
    files["in a torch archive"] = edited_archive({}, lambda _: opcodes(system))
    files["in an old torch file"] = saved({}, zip_archive=False).replace(b"}q\x00.", opcodes(system)[2:])
    nested = opcodes(named("torch.storage", "_load_from_bytes"), b"(", text_bytes(opcodes(system)), b"tR")
    files["in a nested storage"] = nested
    return files


def text_bytes(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def array_claiming(shape: bytes, data: bytes = b"1234", number_type: str = "f4") -> bytes:
    """A numpy array with that shape, as opcodes, over those data."""
    empty = (
        named("numpy.core.multiarray", "_reconstruct")
        + b"("
        + named("numpy", "ndarray")
        + b"K\x00\x85C\x01btR"
    )
    kind = named("numpy", "dtype") + b"(" + text(number_type) + b"K\x00K\x01tR"
    return opcodes(empty, b"(K\x01", shape, kind, b"\x89", text_bytes(data), b"tb")


def memory_and_time_takers() -> dict[str, bytes]:
    """Files of less than a megabyte that ask for much more, or for hours."""
    weights = {"a": torch.zeros(4)}
    huge = b"\x8a\x06" + (10**12).to_bytes(6, "little")
    declares = edited_archive(weights, lambda data: data.replace(b"K\x04", huge))
    tuples = b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    copies = (
        text_bytes(bytes(200_000))
        + b"q\x000("
        + b"".join(
            named("numpy.core.numeric", "_frombuffer")
            + b"(h\x00"
            + named("numpy", "dtype")
            + b"("
            + text("u1")
            + b"tRJ"
            + struct.pack("<i", 200_000)
            + b"\x85tR"
            for _ in range(5000)
        )
    )
    legacy = saved({}, zip_archive=False)
    zeros = [("archive/data/7", bytes(20_000_000))]
    return {
        "memo position": opcodes(b"N", b"r" + struct.pack("<I", 2**31)),
        "memo position as text": opcodes(b"N", b"p99999999999999\n"),
        "long text": opcodes(b"X" + struct.pack("<I", 2**32 - 1) + b"a"),
        "long bytes": opcodes(b"\x8e" + struct.pack("<Q", 2**62) + b"a"),
        "long integer": opcodes(b"\x8b" + struct.pack("<i", 500_000) + bytes(500_000)),
        "negative length": opcodes(b"\x8b" + struct.pack("<i", -5)),
        "decimal of many digits": opcodes(b"I" + b"9" * 300_000 + b"\n"),
        "nested tuples as a key": opcodes(b"}", tuples, b"N", b"s"),
        "colliding integer keys": opcodes(
            b"}(",
            *(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(1, 20_000)),
            b"u",
        ),
        "nested tuples as a storage": edited_archive({}, lambda _: opcodes(tuples, b"Q")),
        "nested tuples as a name": opcodes(tuples, text("x"), b"\x93"),
        "nested tuples as a type": opcodes(named("numpy", "dtype"), tuples, b"\x85R"),
        "nested tuples as an encoding": opcodes(named("_codecs", "encode"), text("x"), tuples, b"\x86R"),
        "nested tuples as a shape": opcodes(named("torch", "Size"), tuples, b"\x85R"),
        "nested tuples as a version": legacy.replace(b"\x80\x02M\xe9\x03.", opcodes(tuples)),
        "endless marks": opcodes(b"(" * 900_000),
        "array of a huge shape": array_claiming(b"J" + struct.pack("<i", 2**31 - 1) + b"\x85"),
        "array of a huge product": array_claiming((b"J" + struct.pack("<i", 2**31 - 1)) * 3 + b"\x87"),
        "array of objects": array_claiming(b"K\x01\x85", bytes(8), "O8"),
        "array of wide texts": array_claiming(b"K\x01\x85", bytes(4), "U1000000000"),
        "bytearray": opcodes(named("builtins", "bytearray"), b"(", huge, b"tR"),
        "the same bytes again": opcodes(copies, b"l"),
        "tensor larger than its storage": declares,
        "tensor expanded": edited_archive(
            weights, lambda data: data.replace(b"K\x04\x85q\x08K\x01\x85", huge + b"\x85q\x08K\x00\x85")
        ),
        "torch.zeros": opcodes(named("torch", "zeros"), b"(", huge, b"tR"),
        "numpy.zeros": opcodes(named("numpy", "zeros"), b"(", huge, b"tR"),
        "zip bomb": edited_archive(weights, compression=zipfile.ZIP_DEFLATED, extra=zeros),
        "safetensors of a huge shape": safetensors_header(
            b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
        ),
        "safetensors of a huge header": struct.pack("<Q", 2**60) + b"{}",
        "safetensors of nested JSON": safetensors_header(b"[" * 200_000),
    }


def safetensors_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(8)


def damaged() -> dict[str, bytes]:
    """Files that are cut off, or hold something else."""
    good = pickle.dumps({"model": {"a": np.arange(6.0)}, "__author__": "x"}, protocol=2)
    whole = saved({"model": {"a": torch.arange(6.0)}})
    return {
        "empty": b"",
        "text": b"<html>404: not found</html>",
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "pickle cut off": good[:-20],
        "archive cut off": whole[:-200],
        "archive of another kind": b"PK\x03\x04" + bytes(100),
        "empty pickle": b"\x80\x02.",
        "name that is no UTF-8": opcodes(b"}X\x03\x00\x00\x00a\xff\xfeN", b"s"),
        "global that is no UTF-8": opcodes(b"c\xff\xfe\nx\n"),
        "pop of nothing": opcodes(b"000"),
        "append to nothing": opcodes(b"Na"),
        "unknown opcode": opcodes(b"\xfe"),
        "old torch file cut off": saved({"a": torch.zeros(50)}, zip_archive=False)[:-50],
    }


def described(config) -> bytes:
    """A whole torch file that describes itself with that configuration."""
    config = config if isinstance(config, str) else yaml.safe_dump(config)
    return saved({"model": {"a": torch.zeros(4)}, "metadata": {"format": 1, "config": config}})


def nested(key: str, value) -> dict:
    """A configuration of one key with dots."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def absurd_configurations() -> dict[str, bytes]:
    """Files whose configuration is of absurd sizes, of other types, or no configuration."""
    sizes = {
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 10**9,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 10**6,
        "MODEL.SEM_SEG_HEAD.MASK_DIM": 10**8,
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 10**5,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 10**9,
        "MODEL.MASK_FORMER.HIDDEN_DIM": 10**6,
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 10**9,
        "MODEL.MASK_FORMER.DEC_LAYERS": 10**6,
        "MODEL.MASK_FORMER.ENC_LAYERS": 10**6,
        "MODEL.MASK_FORMER.NHEADS": 10**9,
        "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 10**6,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 10**5,
        "MODEL.RESNETS.NUM_GROUPS": 10**6,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 10**6,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 10**7,
        "MODEL.SWIN.EMBED_DIM": 10**6,
        "MODEL.SWIN.DEPTHS": [2, 2, 10**6, 2],
        "MODEL.SWIN.NUM_HEADS": [10**6] * 4,
        "MODEL.SWIN.WINDOW_SIZE": 10**5,
        "MODEL.SWIN.MLP_RATIO": 1e9,
        "MODEL.SWIN.PRETRAIN_IMG_SIZE": 10**6,
        "INPUT.MIN_SIZE_TEST": 12_000,
        "INPUT.MAX_SIZE_TEST": 10**9,
        "INPUT.SIZE_DIVISIBILITY": 10**7,
        "TEST.DETECTIONS_PER_IMAGE": 10**9,
    }
    files = {f"{key} {value}": described(nested(key, value)) for key, value in sizes.items()}
    wide = nested("MODEL.MASK_FORMER", {"HIDDEN_DIM": 8192, "DIM_FEEDFORWARD": 65_536, "DEC_LAYERS": 64})
    swin = {"BACKBONE": {"NAME": "D2SwinTransformer"}, "SWIN": {"EMBED_DIM": 2048, "DEPTHS": [64] * 4}}
    resnet = {"RESNETS": {"WIDTH_PER_GROUP": 1024, "NUM_GROUPS": 256, "RES2_OUT_CHANNELS": 1024}}
    resnet |= {"BACKBONE": {"NAME": "build_resnet_backbone"}}
    others = {
        "large together": wide,
        "a large Swin": {"MODEL": swin},
        "a large ResNet": {"MODEL": resnet},
        "many numbers": nested("MODEL.SWIN.DEPTHS", [1] * 5000),
        "not a number": nested("MODEL.SWIN.MLP_RATIO", float("nan")),
        "endless": nested("MODEL.SWIN.MLP_RATIO", float("inf")),
        "unknown key": nested("MODEL.NO_SUCH_KEY", 1),
        "text for a number": nested("MODEL.MASK_FORMER.HIDDEN_DIM", "wide"),
        "list for a node": {"MODEL": [1, 2]},
        "node for a number": nested("MODEL.MASK_FORMER.HIDDEN_DIM.MORE", 1),
        "null": {"MODEL": None},
        "base": {"_BASE_": "/etc/passwd"},
        "escapes": nested("MODEL.\x1b[2J\x1b[31m", 1),
        "long key": nested("MODEL." + "X" * 100_000, 1),
        "number for a key": {"MODEL": {7: 8}},
        "unknown model": nested("MODEL.META_ARCHITECTURE", "\x1b[2JNoSuchModel" * 1000),
        "unknown backbone": nested("MODEL.BACKBONE.NAME", "no_such_backbone"),
    }
    files |= {name: described(config) for name, config in others.items()}
    texts = {
        "date": "MODEL: 2026-01-01",
        "impossible date": "MODEL: 2026-99-99",
        "set": "MODEL: !!set {a, b}",
        "binary": "MODEL: !!binary aaaa",
        "Python": "MODEL: !!python/object/apply:os.system [ls]",
        "deep": "[" * 5000,
        "deep maps": "MODEL: " + "{a: " * 900 + "1" + "}" * 900,
        "aliases": "a: &a [x, x]\nb: &b [*a, *a]\n" + "".join(f"c{i}: &c{i} [*b, *b]\n" for i in range(9)),
        "its own part": "MODEL: &m [*m]",
        "tabs": "MODEL:\n\t- x",
        "list": "[1, 2, 3]",
        "text": "nothing",
        "merge": "<<: {MODEL: {MASK_FORMER: {HIDDEN_DIM: 100000000}}}",
    }
    return files | {f"YAML: {name}": described(text) for name, text in texts.items()}


def cut_short() -> dict[str, bytes]:
    """A torch file, cut at many places."""
    whole = saved({"model": {"a": torch.arange(600.0)}, "metadata": {"config": "VERSION: 2"}})
    return {f"cut after {share} of 24": whole[: len(whole) * share // 24] for share in range(1, 24)}
