"""Where each raw file comes from, how it is checked, and where arrays derived from it are kept.

Raw files are looked up in the folders of the environment variable GENPRED_MIRROR (several are separated by the system's
path separator, each laid out like the paths below), then in the cache, then on the network. The cache is the folder
GENPRED_DATA, by default the user's cache folder. A raw file is used only after its SHA-256 was compared; of the few
that no sum is known of, what is read from them is checked instead. They are put there by hand (`find_unverified`), or
their first download sets the sum of the later ones (`fetch_unpinned`).
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pooch
from filelock import FileLock
from requests.exceptions import RequestException

from datamodules.source_table import SERIES_SOURCES, Source
from datamodules.source_table_synthesis import TABLE_SOURCES

logger = logging.getLogger(__name__)

NOT_THE_ARCHIVE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, KeyError)


class SourceError(RuntimeError):
    """Raw data that cannot be had or cannot be trusted; the message names the file, the place and the remedy."""


SOURCES: dict[str, Source] = {source.name: source for source in (*SERIES_SOURCES, *TABLE_SOURCES)}


def data_home() -> Path:
    """Folder of the cache: GENPRED_DATA, or `genpred` in the user's cache folder."""
    chosen = os.environ.get("GENPRED_DATA")
    return Path(chosen).expanduser() if chosen else Path(pooch.os_cache("genpred"))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(name: str) -> Path | None:
    """A verified raw file from a mirror or the cache, without touching the network.

    Args:
        name: key of `SOURCES`.

    Returns:
        The path, or None when no mirror holds the file and the cache holds no intact copy.

    Raises:
        SourceError: a mirror folder does not exist or cannot be read, or it holds a file with another content.
    """
    source = SOURCES[name]
    path = _in_mirror(source.path)
    if path is not None:
        found = _sum_or_error(path, source)
        if found not in source.sha256:
            raise SourceError(
                f"{name}: {path} has SHA-256 {found}, expected {' or '.join(source.sha256)}: it is damaged, incomplete "
                f"or another file. Replace it, or take its folder out of GENPRED_MIRROR."
            )
        return path
    path = cached_path(source.path)
    if not path.exists():
        return None
    if _sum_or_error(path, source) not in source.sha256:
        logger.warning("%s does not have the expected SHA-256 and is ignored.", path)
        return None
    return path


def find_unverified(path: str) -> Path | None:
    """A raw file, or a folder of files, that no sum is known of, put into a mirror or the cache by hand.

    Args:
        path: path inside a mirror and inside the cache's folder `raw`, with forward slashes.

    Returns:
        The path, or None when neither holds it. The caller has to check what is read from it.

    Raises:
        SourceError: a mirror folder does not exist.
    """
    found = _in_mirror(path)
    if found is None and cached_path(path).exists():
        found = cached_path(path)
    return found


def fetch(name: str) -> Path:
    """A verified raw file, downloaded into the cache when neither a mirror nor the cache holds it.

    Safe for several processes at once: one downloads, the others wait for it. A download gets its final name only when
    it is whole.

    Args:
        name: key of `SOURCES`.

    Returns:
        Path of the file, in a mirror or in the cache; not to be written to.

    Raises:
        SourceError: the file cannot be had, in words with the remedy.
    """
    source = SOURCES[name]
    path = find(name)
    if path is not None:
        return path
    target = cached_path(source.path)
    remedy = (
        f"Set GENPRED_MIRROR to a folder that holds {source.path}, or download the file by hand to {target}, "
        f"or set GENPRED_DATA to a folder with room that can be written to."
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            path = find(name)
            return path if path is not None else _download(source, target, remedy)
    except OSError as error:
        raise SourceError(f"{name}: cannot write {target}: {_reason(error)}. {remedy}") from error


def fetch_unpinned(source: Source, is_usable: Callable[[Path], bool]) -> Path:
    """A raw file whose sum is not known, downloaded into the cache when neither a mirror nor the cache holds it.

    The sum of the first download is kept beside the file, and a later one has to agree with it.

    Args:
        source: without sums; it need not be in `SOURCES`.
        is_usable: whether a first download is what it should be, and not some page of a server's.

    Returns:
        Path of the file, in a mirror or in the cache. The caller has to check what is read from it.

    Raises:
        SourceError: the file cannot be had, in words with the remedy.
    """
    path = _in_mirror(source.path)
    if path is not None:
        return path
    target = cached_path(source.path)
    pin = target.with_name(target.name + ".sha256")
    remedy = (
        f"Set GENPRED_MIRROR to a folder that holds {source.path}, or download the file by hand to {target}, "
        f"or set GENPRED_DATA to a folder with room that can be written to. Should the published file have changed, "
        f"remove {pin}."
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            known = (pin.read_text().strip(),) if pin.exists() else ()
            if known and target.exists() and file_sha256(target) not in known:
                logger.warning("%s does not have the SHA-256 of its first download and is ignored.", target)
                target.unlink()
            if not target.exists():
                _download(replace(source, sha256=known), target, remedy)
            if not known:
                if not is_usable(target):
                    size = target.stat().st_size
                    target.unlink()
                    raise SourceError(f"{source.name}: {source.urls[0]} gave {size} bytes of another kind. {remedy}")
                unfinished = pin.with_name(pin.name + ".unfinished")
                unfinished.write_text(file_sha256(target))
                os.replace(unfinished, pin)  # half a sum would refuse every later download
            return target
    except OSError as error:
        raise SourceError(f"{source.name}: cannot write {target}: {_reason(error)}. {remedy}") from error


def _download(source: Source, target: Path, remedy: str) -> Path:
    # The lock is held, hence one name for the unfinished file is enough; a rest of a killed process is overwritten.
    unfinished = target.with_name(target.name + ".unfinished")
    failures = []
    try:
        for url in source.urls:
            logger.info("Downloading %s", url)
            try:
                address, _, member = url.partition("#")
                pooch.HTTPDownloader(timeout=60)(address, str(unfinished), None)
                if member:
                    _keep_member(unfinished, member)
            except (RequestException, *NOT_THE_ARCHIVE) as error:  # before OSError, of which the first is a subclass
                failures.append(f"{url}: {error}")
                continue
            found = file_sha256(unfinished)
            if found in source.sha256 or not source.sha256:
                os.replace(unfinished, target)
                return target
            failures.append(
                f"{url}: got {unfinished.stat().st_size} bytes with SHA-256 {found}, expected {source.sha256[0]}"
            )
    finally:
        unfinished.unlink(missing_ok=True)
    tried = "".join(f"\n  {failure}" for failure in failures)
    raise SourceError(f"{source.name}: no address gave the file:{tried}\n{remedy}")


def _keep_member(archive: Path, member: str) -> None:
    """Replace a zip or tar archive by one of its members; KeyError where it has none of that name."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            content = opened.read(member)
    else:
        with tarfile.open(archive) as opened:
            content = opened.extractfile(member).read()
    archive.write_bytes(content)


def cached_path(path: str) -> Path:
    """Where the cache keeps the raw file that has this path inside a mirror."""
    return data_home() / "raw" / path


def _in_mirror(path: str) -> Path | None:
    for folder in filter(None, os.environ.get("GENPRED_MIRROR", "").split(os.pathsep)):
        mirror = Path(folder).expanduser()
        if not mirror.is_dir():
            raise SourceError(
                f"{path}: GENPRED_MIRROR names {mirror}, which is not a folder. Correct or unset GENPRED_MIRROR."
            )
        if (mirror / path).exists():
            return mirror / path
    return None


def _sum_or_error(path: Path, source: Source) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise SourceError(f"{source.name}: cannot read {path}: {_reason(error)}.") from error


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC or re.search(r"requested and \d+ written", str(error)):  # the latter is NumPy's
        return "no room left on the device"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "no permission to write there"
    return str(error)


def ensure_arrays(folder: Path, build: Callable[[], tuple[dict[str, np.ndarray], dict[str, Any]]]) -> None:
    """Make sure that `folder` holds derived arrays whole and undamaged; build them otherwise.

    Safe for several processes at once. The folder gets its name only when it is complete.

    Args:
        folder: one `.npy` file an array and `description.json` with their sums.
        build: gives the arrays by name, and facts that are stored beside them (plain JSON values).

    Raises:
        SourceError: the folder cannot be written, in words.
    """
    if _is_intact(folder):  # asked before the lock, which a cache that can only be read would not allow
        return
    unfinished = folder.with_name(folder.name + ".unfinished")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if _is_intact(folder):
                return
            arrays, facts = build()
            for rest in (unfinished, folder):
                if rest.exists():
                    shutil.rmtree(rest)
            unfinished.mkdir()
            try:
                for name, array in arrays.items():
                    np.save(unfinished / f"{name}.npy", array, allow_pickle=False)
                sums = {name: file_sha256(unfinished / f"{name}.npy") for name in arrays}
                (unfinished / "description.json").write_text(json.dumps({"facts": facts, "sha256": sums}, indent=1))
                os.rename(unfinished, folder)
            except OSError:
                shutil.rmtree(unfinished, ignore_errors=True)  # what is left on a full disk is in the way of others
                raise
    except OSError as error:
        raise SourceError(
            f"Cannot write {folder}: {_reason(error)}. Set GENPRED_DATA to a folder with room that can be written to."
        ) from error


def open_arrays(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays that `ensure_arrays` stored, as read-only memory maps, and the facts beside them.

    Raises:
        SourceError: the folder is missing, incomplete or unreadable.
    """
    try:
        description = json.loads((folder / "description.json").read_text())
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in description["sha256"]
        }
        return arrays, description["facts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{folder} is missing or incomplete ({error}). Call prepare_data() again, which builds it anew."
        ) from error


def _is_intact(folder: Path) -> bool:
    try:
        sums = json.loads((folder / "description.json").read_text())["sha256"]
        return all(file_sha256(folder / f"{name}.npy") == expected for name, expected in sums.items())
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, AttributeError, TypeError):
        return False
