"""Weight files by name: paths, URLs and Detectron2's `detectron2://` names, kept in one cache.

The cache is $MASK_FORMER_CACHE, or ~/.cache/mask_former; a file lies there under its host and path. A
transfer that breaks off is taken up where it stopped, also by the next run.
"""

import hashlib
import logging
import os
import re
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from iopath.common.file_io import file_lock

logger = logging.getLogger(__name__)

DETECTRON2_PREFIX = "detectron2://"
DETECTRON2_URL = "https://dl.fbaipublicfiles.com/detectron2/"
CACHE_VARIABLE = "MASK_FORMER_CACHE"
TIMEOUT_SECONDS = 30
ATTEMPTS = 4
CHUNK = 1 << 20

# Publishers that put the beginning of a hash into their file names: URL pattern -> algorithm.
HASHED_NAMES = {
    r"^https://dl\.fbaipublicfiles\.com/maskformer/.*_([0-9a-f]{6})\.pkl$": "md5",
    r"^https://download\.pytorch\.org/models/.*-([0-9a-f]{8})\.pth$": "sha256",
}


class _Source(NamedTuple):
    """A URL, the beginning of its file's hash ("" if not known), and where the file is kept."""

    url: str
    algorithm: str
    prefix: str
    file: Path


class _IncompleteError(OSError):
    """A transfer broke off; what has come is kept."""


def resolve(name: str | Path, expected_hash: str = "") -> Path:
    """Return the local path of a weight file, which is fetched if need be.

    Args:
        name: a path (relative ones from the working folder), a URL with http or https, or `detectron2://...`.
        expected_hash: "md5:d8dbeb" or "sha256:..."; the beginning of the hash is enough. Without it, the hash
            that a publisher is known to put into the name is checked. Files given by path are not checked.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: it cannot be fetched, and is not in the cache.
        ValueError: what was fetched has another hash.
    """
    # Detectron2's main branch knows this ending; here names are matched in any case.
    text = str(name).removesuffix("?matching_heuristics=True")
    url = text.replace(DETECTRON2_PREFIX, DETECTRON2_URL, 1) if text.startswith(DETECTRON2_PREFIX) else text
    if urlsplit(url).scheme in ("http", "https"):
        return _fetched(_source(url, expected_hash))
    path = Path(text.removeprefix("file://")).expanduser()
    if path.exists():
        return path
    raise FileNotFoundError(f"{text}: no such file in {Path.cwd()}. {_advice(path)}")


def _advice(path: Path) -> str:
    if re.match(r"R-\d+\.pkl$", path.name):
        depth = path.stem.removeprefix("R-")
        return (
            f"Make it of torchvision's: python -m mask_former.convert resnet{depth}-XXXXXXXX.pth {path.name}"
        )
    if path.name.startswith("swin_"):
        return f"Make it of the Swin release's: python -m mask_former.convert {path.stem}.pth {path.name}"
    return "Give a path that exists, a URL, or a detectron2:// name (MODEL.WEIGHTS)."


def cache_folder() -> Path:
    """Return the folder in which fetched files are kept."""
    folder = os.environ.get(CACHE_VARIABLE)
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "mask_former"


def cached_path(url: str) -> Path:
    """Return where the file of a URL is kept, whether it is there or not."""
    parts = urlsplit(url)
    names = [name for name in unquote(parts.path).split("/") if name not in ("", ".", "..")]
    query = f".{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}" if parts.query else ""
    host = parts.netloc.rpartition("@")[2].replace(":", "_")
    return cache_folder().joinpath(host, *names[:-1], (names[-1] if names else "index") + query)


def _source(url: str, expected_hash: str) -> _Source:
    if expected_hash:
        algorithm, _, prefix = expected_hash.lower().rpartition(":")
        if algorithm not in hashlib.algorithms_available or not re.fullmatch("[0-9a-f]+", prefix):
            raise ValueError(
                f"Hash {expected_hash!r}: expected an algorithm and its beginning, as 'md5:d8dbeb'."
            )
        return _Source(url, algorithm, prefix, cached_path(url))
    for pattern, algorithm in HASHED_NAMES.items():
        if match := re.match(pattern, url):
            return _Source(url, algorithm, match.group(1), cached_path(url))
    return _Source(url, "", "", cached_path(url))


def _fetched(source: _Source) -> Path:
    if _is_good(source):
        return source.file
    try:
        source.file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"Cannot make {source.file.parent} ({error}); set {CACHE_VARIABLE} to another folder."
        ) from error
    # Processes that start together must not fetch the same file twice, or into each other.
    with file_lock(str(source.file)):
        if not _is_good(source):
            _fetch(source)
    return source.file


def _is_good(source: _Source) -> bool:
    if not source.file.is_file():
        return False
    if not source.prefix or _hash(source.file, source.algorithm).startswith(source.prefix):
        return True
    logger.warning("%s has another hash than %s: fetching it again", source.file, source.prefix)
    return False


def _hash(file: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch(source: _Source) -> None:
    partial = source.file.with_name(source.file.name + ".partial")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _transfer(source.url, partial)
            break
        except urllib.error.HTTPError as error:
            raise _unreachable(source, f"the server says {error.code} {error.reason}") from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            if attempt == ATTEMPTS or not isinstance(error, _IncompleteError | HTTPException):
                raise _unreachable(source, str(reason)) from error
            logger.warning("Transfer of %s broke off (%s): going on from there", source.url, reason)
    found = _hash(partial, source.algorithm) if source.prefix else ""
    if not found.startswith(source.prefix):
        partial.unlink()
        _validator(partial).unlink(missing_ok=True)
        raise ValueError(
            f"{source.url} has {source.algorithm} {found}, expected {source.prefix}...: what was fetched is "
            "not what was published, and has been removed. Try again, or fetch the file by other means."
        )
    os.replace(partial, source.file)
    _validator(partial).unlink(missing_ok=True)


def _unreachable(source: _Source, reason: str) -> ConnectionError:
    return ConnectionError(
        f"Cannot fetch {source.url}: {reason}. Without a network, put the file at {source.file} (the cache; "
        f"${CACHE_VARIABLE} sets its folder), or give the path of a local file (MODEL.WEIGHTS)."
    )


def _validator(partial: Path) -> Path:
    """Return the file that holds what identifies the version of a half-fetched file."""
    return partial.with_name(partial.name + ".version")


def _transfer(url: str, partial: Path) -> None:
    """Fetch a file, or the rest of it."""
    request = urllib.request.Request(
        url, headers={"User-Agent": "mask_former", "Accept-Encoding": "identity"}
    )
    version = _validator(partial)
    begun = partial.stat().st_size if partial.exists() and version.exists() else 0
    if begun:
        request.add_header("Range", f"bytes={begun}-")
        request.add_header("If-Range", version.read_text())
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the file has another size than before: from the start
            raise
        partial.unlink()
        raise _IncompleteError("the server's file has changed") from error
    with response:
        if response.status != 206:
            begun = 0
        _note_version(response, version)
        _copy(response, partial, begun)


def _note_version(response: HTTPResponse, version: Path) -> None:
    mark = response.headers.get("ETag") or response.headers.get("Last-Modified")
    if mark and not mark.startswith("W/"):
        version.write_text(mark)
    else:
        version.unlink(missing_ok=True)


def _copy(response: HTTPResponse, partial: Path, begun: int) -> None:
    length = response.headers.get("Content-Length")
    total = begun + int(length) if length else None
    size = f"{total / 2**20:.0f} MB" if total else "unknown size"
    logger.info("Fetching %s (%s%s)", response.url, size, f", from byte {begun} on" if begun else "")
    with partial.open("ab" if begun else "wb") as stream:
        written = begun
        try:
            while chunk := response.read(CHUNK):
                stream.write(chunk)
                written += len(chunk)
        except (OSError, HTTPException) as error:
            raise _IncompleteError(f"{error} after {written} bytes") from error
    if total is not None and written < total:
        raise _IncompleteError(f"{written} of {total} bytes came")
