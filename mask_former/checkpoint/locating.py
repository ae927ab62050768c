"""Weight files by name: paths, URLs, `detectron2://` and `timm://` names, kept in one cache.

The cache is $MASK_FORMER_CACHE, or ~/.cache/mask_former; a file is kept there under its host and path.
"""

import hashlib
import importlib
import logging
import os
import re
import socket
import sys
import threading
from http.client import HTTPException
from pathlib import Path
from urllib.error import ContentTooShortError
from urllib.parse import unquote, urlsplit

from iopath.common.download import download
from iopath.common.file_io import file_lock

logger = logging.getLogger(__name__)

DETECTRON2_PREFIX = "detectron2://"
DETECTRON2_URL = "https://dl.fbaipublicfiles.com/detectron2/"
TIMM_PREFIX = "timm://"
CACHE_VARIABLE = "MASK_FORMER_CACHE"
ATTEMPTS = 4
# Seconds without a byte of the server, after which a download has broken off.
TIMEOUT = 30.0

_timeout_lock = threading.Lock()
# Publishers that put the beginning of a hash into their file names: URL pattern -> algorithm.
HASHED_NAMES = {
    r"^https://dl\.fbaipublicfiles\.com/maskformer/.*_([0-9a-f]{6})\.pkl$": "md5",
    r"^https://download\.pytorch\.org/models/.*-([0-9a-f]{8})\.pth$": "sha256",
}


def resolve(name: str | Path, expected_hash: str = "") -> Path:
    """Return the local path of a weight file, which is downloaded if necessary.

    Args:
        name: a path (relative ones from the working folder), a URL with http or https, `detectron2://...`, or
            `timm://...` with a net of timm and the tag of its weights, as in `timm://convnext_tiny.in12k`.
        expected_hash: "md5:d8dbeb" or "sha256:..."; the beginning of the hash is enough. Without it, the hash
            that a publisher is known to put into the name is checked. Files given by path are not checked.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: it cannot be downloaded, and is not in the cache.
        ValueError: the downloaded file has another hash.
    """
    # Detectron2's main branch knows this ending; here names are matched in any case.
    text = str(name).removesuffix("?matching_heuristics=True")
    url = text.replace(DETECTRON2_PREFIX, DETECTRON2_URL, 1) if text.startswith(DETECTRON2_PREFIX) else text
    if text.startswith(TIMM_PREFIX):
        url = _timm_url(text)
    if urlsplit(url).scheme in ("http", "https"):
        file, expected = cached_path(url), _parsed_hash(url, expected_hash)
        if not _is_good(file, *expected):
            file.parent.mkdir(parents=True, exist_ok=True)
            # Processes that start together must not download the same file twice, or into each other.
            with file_lock(str(file)):
                if not _is_good(file, *expected):
                    _download(url, file, *expected)
        return file
    path = Path(text.removeprefix("file://")).expanduser()
    if path.exists():
        return path
    advice = "Give a path that exists, a URL, or a detectron2:// or timm:// name (MODEL.WEIGHTS)."
    if re.match(r"R-\d+\.pkl$", path.name):
        source = f"resnet{path.stem.removeprefix('R-')}-XXXXXXXX.pth"
        advice = f"Make it of torchvision's: python -m mask_former.convert {source} {path.name}"
    elif path.name.startswith("swin_"):
        advice = f"Make it of the Swin release's: python -m mask_former.convert {path.stem}.pth {path.name}"
    raise FileNotFoundError(f"{text}: no such file in {Path.cwd()}. {advice}")


def _timm_url(text: str) -> str:
    """Return where the weights are that timm's own download fetches."""
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ModuleNotFoundError(f"{text} needs timm: pip install 'mask-former[timm]'") from error
    name = text.removeprefix(TIMM_PREFIX)
    known = timm.list_pretrained(f"{name.split('.')[0]}.*")
    if name not in known:
        hint = f"it has {', '.join(known[:5])}" if known else "timm.list_pretrained() has their names"
        raise ValueError(f"{text}: timm {timm.__version__} has no such weights; {hint}.")
    record = timm.get_pretrained_cfg(name)
    if not record.hf_hub_id:
        return record.url
    return f"https://huggingface.co/{record.hf_hub_id}/resolve/main/model.safetensors"


def cached_path(url: str) -> Path:
    """Return where the file of a URL is kept, whether it is there or not."""
    folder = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/mask_former").expanduser()
    parts = urlsplit(url)
    names = [name for name in unquote(parts.path).split("/") if name not in ("", ".", "..")]
    query = f".{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}" if parts.query else ""
    host = parts.netloc.rpartition("@")[2].replace(":", "_")
    return folder.joinpath(host, *names[:-1], (names[-1] if names else "index") + query)


def _parsed_hash(url: str, expected_hash: str) -> tuple[str, str]:
    """Return algorithm and beginning of the hash that a URL's file should have; empty if not known."""
    if not expected_hash:
        matches = ((algorithm, re.match(pattern, url)) for pattern, algorithm in HASHED_NAMES.items())
        return next(((algorithm, match[1]) for algorithm, match in matches if match), ("", ""))
    algorithm, _, prefix = expected_hash.lower().rpartition(":")
    if algorithm not in hashlib.algorithms_available or not re.fullmatch("[0-9a-f]+", prefix):
        raise ValueError(f"Hash {expected_hash!r}: expected algorithm and beginning, as 'md5:d8dbeb'.")
    return algorithm, prefix


def _is_good(file: Path, algorithm: str, prefix: str) -> bool:
    if not file.is_file():
        return False
    if _hash(file, algorithm).startswith(prefix):
        return True
    logger.warning("%s has another hash than %s: downloading it again", file, prefix)
    return False


def _hash(file: Path, algorithm: str) -> str:
    """Return the hash of a file, in hexadecimal; empty without an algorithm."""
    if not algorithm:
        return ""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _download(url: str, file: Path, algorithm: str, prefix: str) -> None:
    partial = file.with_name(f"{file.name}.partial")
    partial.unlink(missing_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _download_once(url, partial)
            break
        except (OSError, HTTPException) as error:
            is_broken_off = isinstance(error, ContentTooShortError | HTTPException | TimeoutError)
            if attempt == ATTEMPTS or not is_broken_off:
                raise ConnectionError(
                    f"Cannot download {url}: {error}. Without a network, put the file at {file} (the cache; "
                    f"${CACHE_VARIABLE} sets its folder), or give the path of a local file (MODEL.WEIGHTS)."
                ) from error
            logger.warning("Download of %s broke off (%s): trying again", url, error)
    actual = _hash(partial, algorithm)
    if not actual.startswith(prefix):
        partial.unlink()
        raise ValueError(
            f"{url} has {algorithm} {actual}, expected {prefix}...: it is not the published file, and is "
            "removed. Try again, or download it by other means."
        )
    os.replace(partial, file)


def _download_once(url: str, file: Path) -> None:
    # The library has no option for it. The lock keeps two threads from restoring each other's value.
    with _timeout_lock:
        previous = socket.getdefaulttimeout()
        socket.setdefaulttimeout(TIMEOUT)
        try:
            download(url, str(file.parent), filename=file.name, progress=sys.stderr.isatty())
        finally:
            socket.setdefaulttimeout(previous)
