"""Where each raw file comes from, how it is checked, and where arrays derived from it are kept.

Raw files are looked up in the folders of the environment variable GENPRED_MIRROR (several are separated by the system's
path separator, each laid out like the paths below), then in the cache, then on the network. The cache is the folder
GENPRED_DATA, by default the user's cache folder. A raw file is used only after its SHA-256 was compared.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pooch
from filelock import FileLock
from requests.exceptions import RequestException

logger = logging.getLogger(__name__)


class SourceError(RuntimeError):
    """Raw data that cannot be had or cannot be trusted; the message names the file, the place and the remedy."""


@dataclass(frozen=True)
class Source:
    """One raw file.

    Attributes:
        name: key of `SOURCES`, unique.
        path: path inside a mirror and inside the cache's folder `raw`, with forward slashes.
        urls: addresses, tried in order.
        sha256: accepted sums in hexadecimal, the published one first; the others are repackings of the same content.
        license: licence or terms of use.
        citation: whom to cite.
    """

    name: str
    path: str
    urls: tuple[str, ...]
    sha256: tuple[str, ...]
    license: str
    citation: str


def _mnist(name: str, *sha256: str) -> Source:
    return Source(
        name=name,
        path=f"mnist/{name}",
        urls=(
            f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}",
            f"https://storage.googleapis.com/cvdf-datasets/mnist/{name}",
        ),
        sha256=sha256,
        license="CC BY-SA 3.0",
        citation="LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, 1998",
    )


def _physionet(name: str, *sha256: str) -> Source:
    return Source(
        name=name,
        path=f"physionet2012/{name}",
        urls=(f"https://physionet.org/files/challenge-2012/1.0.0/{name}?download",),
        sha256=sha256,
        license="ODC-By 1.0",
        citation="Silva, Moody, Scott, Celi and Mark, Predicting in-hospital mortality of ICU patients: "
        "the PhysioNet/Computing in Cardiology Challenge 2012",
    )


def _sprites(name: str, *sha256: str) -> Source:
    # The commit is pinned: frames of another state of the sheets would be another data set.
    commit = "3ce4048c5227802bd8f1888e293fd3afdba91c0c"
    return Source(
        name=name,
        path=f"sprites/{name}",
        urls=(
            f"https://raw.githubusercontent.com/YingzhenLi/Sprites/{commit}/{name}",
            f"https://github.com/YingzhenLi/Sprites/raw/{commit}/{name}",
        ),
        sha256=sha256,
        license="CC BY-SA 3.0 / GPL 3.0",
        citation="Li and Mandt, Disentangled sequential autoencoder, 2018; sheets of the Liberated Pixel Cup and the "
        "Universal LPC Spritesheet",
    )


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        _mnist(
            "train-images-idx3-ubyte.gz",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971",
        ),
        _mnist(
            "train-labels-idx1-ubyte.gz",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        _mnist(
            "t10k-images-idx3-ubyte.gz",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be",
        ),
        _mnist(
            "t10k-labels-idx1-ubyte.gz",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        _physionet(
            "set-a.tar.gz",
            "8cb250f179cd0952b4b9ebcf8954b63d70383131670fac1cfee13deaa13ca920",
            "28aff9276b5a864608836f4f2dd3791d3feedcc57178620ecb66bb7e8e439d3d",
        ),
        _physionet(
            "set-b.tar.gz",
            "b1637a2a423a8e76f8f087896cfc5fdf28f88519e1f4e874fbda69b2a64dac30",
            "639ab95b809aa849cc083b1675a5f1b345547d7c670c88f3a15b61e3c489105e",
        ),
        _physionet(
            "set-c.tar.gz",
            "a4a56b95bcee4d50a3874fe298bf2998f2ed0dd98a676579573dc10419329ee1",
            "a94afd695f573b365f0188cc5adb88f972e7742426c5e2fcf84c765dbb0ec0a3",
        ),
        _physionet("Outcomes-a.txt", "2613ea60ccda29f87571a7d6b09ad130858a8ccd66325bd073365925026883c2"),
        _physionet("Outcomes-b.txt", "1305f29734da374a809483229a99f33a9230aa8d4fa74b1a2d6ad788136423d5"),
        _physionet("Outcomes-c.txt", "0b32dcb7753c0f18f2f5fde498a28618b8879c5e527ce0dae8ad120dd7e205c9"),
        _sprites("body/0.png", "27d1ac78db37c42f35a20d15c42705efc5e58d47c236cc01423879d4f797f151"),
        _sprites("body/1.png", "1535e9228357b884df80f777a0d1dac10ac35e550e4d8d077105ccad014a1460"),
        _sprites("body/2.png", "7c241033b4897501cb3721b6c3a9ebfa94b13db10a539edbd9bcc3e0c2a4bcb9"),
        _sprites("body/3.png", "055f5aa33fc112d8444b42fce2cf50608a9fbbf2466c54ceaa46c777589a717a"),
        _sprites("body/4.png", "57f3b9c510482379aba9a32fc0de7d48e9cbe3dc40f2447283547f773b77ca72"),
        _sprites("body/5.png", "91e49453aeab5ebbb4fd2b48253812895dcfb4cb1829b84e24425c66de8f04ff"),
        _sprites("bottomwear/0.png", "4ec356c488e272fde2d2d0d722b12a80217871e41161d43ba784caf243969ec2"),
        _sprites("bottomwear/1.png", "0674312eaa4ab548f8bb31ef95d7dbd46b41555758cec51bd6c3e9fac9a0f936"),
        _sprites("bottomwear/2.png", "3b464feb0d20ff34b0ca2a6d1fd00766ad86e2229c3d56ff91379fe27588a893"),
        _sprites("bottomwear/3.png", "b366e84ea0519d06cf693f51e0ee2f9ac32b3132d27c75dfdc4b6f52fca072de"),
        _sprites("bottomwear/4.png", "4ed7e7702e4f50b9692c0043be04b7296a108d85ea97230fb50d13c150d98771"),
        _sprites("bottomwear/5.png", "a5c5e7e33f13fe5ad37b5836a5a74fb0d2094a0877c2146961b88688ff85840d"),
        _sprites("topwear/0.png", "b917edcf2b3c35d51ef57a6fad67557c5edf048785bea29db09a640d09ac9a90"),
        _sprites("topwear/1.png", "e33c6cb31ed1268a2c0dc73b665b1c9b9420e22baf3321880222bdb22682368b"),
        _sprites("topwear/2.png", "2b9b8fefa08894b7ea536cd62b86d494aefe6e54495c5c1d83460827b13b6448"),
        _sprites("topwear/3.png", "807f5b628592f6747e2814be9435963069dba6c360577168c02f57bbe903433d"),
        _sprites("topwear/4.png", "b51b17878503877e179ce4f9231713bf2b2d2d666c3ec9ee29f4e784469867a2"),
        _sprites("topwear/5.png", "1b6049d43f83ebfda857cc405d1936ac9fd80be480fa6ad239024a6a75ad0372"),
        _sprites("hair/0.png", "e4007b0635a239ad16cdebfe90759349ccc73dfc6836c9d19625714be185f43d"),
        _sprites("hair/1.png", "fa6369f84d3310705df6d8ca8c9d515a7d211e73d2826c50a9cb5bb285652c66"),
        _sprites("hair/2.png", "1b8046752be7233e829ebe9b11048e171d8d181ee6f68e07042b34f57bb8af0d"),
        _sprites("hair/3.png", "333783285c5fd94ff434ae5000d2da39aac7940269f173119eaa70d34c8acfa1"),
        _sprites("hair/4.png", "24df8e9b291cbd444f6c4d12d35b3d43d909cd13f04e6401e0fd8ab10216d5a2"),
        _sprites("hair/5.png", "4dd471cc20e0b1cf71adcaab01c88598767e5cfe680adacdf560ca91574f17ae"),
        _sprites("shoes/1.png", "d56a561616a20a12030d2d40a52eeec63e6d048871bf3b6994221869362151f1"),
    )
}


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
    for folder in filter(None, os.environ.get("GENPRED_MIRROR", "").split(os.pathsep)):
        mirror = Path(folder).expanduser()
        if not mirror.is_dir():
            raise SourceError(
                f"{name}: GENPRED_MIRROR names {mirror}, which is not a folder. Correct or unset GENPRED_MIRROR."
            )
        path = mirror / source.path
        if not path.exists():
            continue
        found = _sum_or_error(path, source)
        if found not in source.sha256:
            raise SourceError(
                f"{name}: {path} has SHA-256 {found}, expected {' or '.join(source.sha256)}: it is damaged, incomplete "
                f"or another file. Replace it, or take its folder out of GENPRED_MIRROR."
            )
        return path
    path = _cached_path(source)
    if not path.exists():
        return None
    if _sum_or_error(path, source) not in source.sha256:
        logger.warning("%s does not have the expected SHA-256 and is ignored.", path)
        return None
    return path


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
    target = _cached_path(source)
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


def _download(source: Source, target: Path, remedy: str) -> Path:
    # The lock is held, hence one name for the unfinished file is enough; a rest of a killed process is overwritten.
    unfinished = target.with_name(target.name + ".unfinished")
    failures = []
    try:
        for url in source.urls:
            logger.info("Downloading %s", url)
            try:
                pooch.HTTPDownloader(timeout=60)(url, str(unfinished), None)
            except RequestException as error:  # before OSError, of which it is a subclass
                failures.append(f"{url}: {error}")
                continue
            found = file_sha256(unfinished)
            if found in source.sha256:
                os.replace(unfinished, target)
                return target
            failures.append(
                f"{url}: got {unfinished.stat().st_size} bytes with SHA-256 {found}, expected {source.sha256[0]}"
            )
    finally:
        unfinished.unlink(missing_ok=True)
    tried = "".join(f"\n  {failure}" for failure in failures)
    raise SourceError(f"{source.name}: no address gave the file:{tried}\n{remedy}")


def _cached_path(source: Source) -> Path:
    return data_home() / "raw" / source.path


def _sum_or_error(path: Path, source: Source) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise SourceError(f"{source.name}: cannot read {path}: {_reason(error)}.") from error


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
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
            for name, array in arrays.items():
                np.save(unfinished / f"{name}.npy", array, allow_pickle=False)
            sums = {name: file_sha256(unfinished / f"{name}.npy") for name in arrays}
            (unfinished / "description.json").write_text(json.dumps({"facts": facts, "sha256": sums}, indent=1))
            os.rename(unfinished, folder)
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
    except (FileNotFoundError, ValueError, KeyError, AttributeError, TypeError):
        return False
