"""Bundles: the source files of local modules in one archive, named by the hash of what it holds.

Theory of operation. A client makes the bundle of a workflow from the files that the workflow's module needs
(`sources`), and it is kept once in the storage. A process of the engine runs one bundle at most. It unpacks
the bundle into a folder of its node and puts that folder in front of `sys.path`. From then on the modules of
the bundle are imported under their real names, from files, like any others.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import shutil
import stat
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import msgspec

from pyworkflow_ray.exceptions import ConfigurationError, SerializationError
from pyworkflow_ray.values import modules
from pyworkflow_ray.values.scripts import MAIN, is_guarded
from pyworkflow_ray.values.sources import Closure, Files

DEFAULT_LIMIT = 10 * 2**20
"""Bytes that the files of a bundle may have together."""
LOOK_AGAIN_AFTER = 1.0
"""Seconds for which a client takes it that no file has changed."""
FORGET_AFTER = 30 * 86_400
"""Seconds after which a node deletes a bundle that no process has begun to use."""
_SHOWN_LARGEST = 5
_MOST_REMEMBERED = 1000
_HASH_LENGTH = 16
_MANIFEST = ".files.json"


class Bundle(msgspec.Struct, frozen=True):
    """The sources of local modules.

    Args:
        hash: Names what it holds: 16 hexadecimal digits, the same from every driver with the same files.
        data: The archive.
        modules: The names of all modules in it.
    """

    hash: str
    data: bytes
    modules: frozenset[str]


# --- making ---------------------------------------------------------------------------------------


class Bundler:
    """Makes bundles, and makes each anew only if its files have changed.

    Args:
        patterns: Data files that travel too: glob patterns, relative to the folder on `sys.path` below which
            the modules lie.
        limit: The bytes that the files may have together.
    """

    def __init__(self, patterns: Iterable[str] = (), limit: int = DEFAULT_LIMIT) -> None:
        self._patterns, self._limit = tuple(patterns), limit
        self._made: dict[frozenset[str], tuple[Closure, Bundle | None, float]] = {}
        self._asked: dict[int, Any] = {}

    def bundle(self, names: Iterable[str], definition: Any, what: str) -> Bundle | None:
        """The bundle of these local modules and of all that they import; None if no module is local.

        Args:
            definition: What the bundle is for. A definition that was not seen before may come from a module
                that was loaded again. So all files are looked at, and for another one once a second at most.
            what: Names the definition in errors.

        Raises:
            ConfigurationError: The files are too large together.
        """
        wanted, now = frozenset(names), time.monotonic()
        is_new = self._asked.get(id(definition)) is not definition
        if len(self._asked) > _MOST_REMEMBERED:
            self._asked.clear()
        self._asked[id(definition)] = definition
        if (known := self._made.get(wanted)) is not None:
            closure, bundle, looked_at = known
            if not is_new and now - looked_at < LOOK_AGAIN_AFTER:
                return bundle
            if closure.is_current():
                self._made[wanted] = (closure, bundle, now)
                return bundle
        closure = Closure(wanted, self._patterns)
        bundle = make(closure.files, what, self._limit) if closure.files else None
        if len(self._made) > _MOST_REMEMBERED:
            self._made.clear()
        self._made[wanted] = (closure, bundle, now)
        return bundle


def make(files: Files, what: str, limit: int = DEFAULT_LIMIT) -> Bundle:
    """The bundle of these files; the same files make the same bundle.

    Raises:
        ConfigurationError: They have more bytes together than the limit, or one cannot be read.
    """
    sizes = {place: path.stat().st_size for place, path in files.items()}
    if sum(sizes.values()) > limit:
        largest = sorted(sizes, key=lambda place: -sizes[place])[:_SHOWN_LARGEST]
        listed = ", ".join(f"{place} ({sizes[place] / 2**20:.1f} MB)" for place in largest)
        raise ConfigurationError(
            f"The local files of {what} have {sum(sizes.values()) / 2**20:.1f} MB in {len(sizes)} files, and "
            f"{limit / 2**20:.1f} MB may travel with a run. The largest: {listed}. Install large packages on "
            "the cluster, keep data elsewhere, or raise the limit: configure(code_limit=...)."
        )
    try:
        contents = {place: files[place].read_bytes() for place in sorted(files)}
    except OSError as error:
        raise ConfigurationError(f"The code of {what} cannot be read: {error}.") from error
    return Bundle(hash_of(contents), _archive(contents), frozenset(map(_module_of, contents)) - {""})


def _archive(contents: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for place, content in contents.items():
            # No time and no owner: they differ from driver to driver.
            archive.writestr(zipfile.ZipInfo(place), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def hash_of(contents: dict[str, bytes]) -> str:
    """The name of a bundle with these contents, whatever the compression makes of them."""
    digest = hashlib.sha256()
    for place in sorted(contents):
        name, content = place.encode(errors="surrogateescape"), contents[place]
        digest.update(b"%d:%d:%b%b" % (len(name), len(content), name, content))
    return digest.hexdigest()[:_HASH_LENGTH]


def _module_of(place: str) -> str:
    path = PurePosixPath(place)
    if path.suffix not in (".py", ".so", ".pyd"):
        return ""
    parts = path.parent.parts if path.name == "__init__.py" else (*path.parent.parts, path.name.split(".")[0])
    return ".".join(parts)


# --- using ----------------------------------------------------------------------------------------


class _Installed:
    """The bundle that this process runs."""

    def __init__(self) -> None:
        self.hash = ""
        self.folder = ""


_installed = _Installed()


def enter_engine() -> None:
    """Make this a process of the engine: what it writes is for readers that have its bundle's modules."""
    modules.set_naming(_is_in_bundle)


def installed_hash() -> str | None:
    """The hash of the bundle that this process runs; None if it runs none."""
    return _installed.hash or None


def installed_folder() -> str | None:
    """The folder of the bundle that this process runs; None if it runs none."""
    return _installed.folder or None


def _is_in_bundle(module_name: str) -> bool:
    module = sys.modules.get(module_name)
    if not _installed.folder or not modules.is_module(module):
        return False
    file = modules.file_of(module)
    return file is not None and file.startswith(_installed.folder)


def install(hash_: str, fetch: Callable[[], bytes]) -> None:
    """Have this process run a bundle: its modules can be imported from now on.

    Args:
        fetch: Gives the archive, if this node does not have the bundle.

    Raises:
        SerializationError: This process runs another bundle, or the archive is damaged.
    """
    if _installed.hash == hash_:
        return
    if _installed.hash:
        raise SerializationError(
            f"This process runs the code {_installed.hash}, and cannot run the code {hash_} too."
        )
    folder = _unpacked(hash_, fetch)
    places = json.loads((folder / _MANIFEST).read_text())
    for top in {_module_of(place).partition(".")[0] for place in places} - {""}:
        _refuse_other(top, str(folder))
    _installed.folder = str(folder) + os.sep
    _installed.hash = hash_
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def _refuse_other(top: str, folder: str) -> None:
    module = sys.modules.get(top)
    if not modules.is_module(module):
        return
    file = getattr(module, "__file__", None) or "built in"
    if not str(file).startswith(folder) and modules.is_importable_everywhere(top):
        raise SerializationError(
            f"The local module {top!r} has the name of a module that the engine uses itself ({file}). "
            "Give it another name."
        )
    if not str(file).startswith(folder):
        del sys.modules[top]  # a local one that something has imported from this machine's own files


def know_as_main(module: ModuleType) -> None:
    """Have a script of the bundle, which was imported, be known as `__main__` too, as in its driver."""
    file = getattr(module, "__file__", None)
    if module is sys.modules[MAIN] or not file or not str(file).startswith(_installed.folder or "\0"):
        return
    if is_guarded(Path(file).read_bytes()):
        _mains.append(sys.modules[MAIN])  # its frame is the bottom of this process's stack
        sys.modules[MAIN] = module


_mains: list[object] = []


def _unpacked(hash_: str, fetch: Callable[[], bytes]) -> Path:
    """The folder with the bundle's files, unpacked if it is not there or not whole."""
    folder = _cache() / hash_
    if not _is_whole(folder):
        data = fetch()
        contents = _contents(hash_, data)
        if folder.exists():  # something has deleted some of its files
            _write(folder, contents)
        else:
            scratch = Path(tempfile.mkdtemp(prefix=f"{hash_}-", dir=folder.parent))
            _write(scratch, contents)
            try:
                os.replace(scratch, folder)
            except OSError:  # another process was faster
                shutil.rmtree(scratch, ignore_errors=True)
        _forget_old(folder.parent)
    os.utime(folder)
    return folder


def _contents(hash_: str, data: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            contents = {each.filename: archive.read(each) for each in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise SerializationError(f"The code {hash_} is damaged: {error}.") from error
    if hash_of(contents) != hash_:
        raise SerializationError(f"The code {hash_} is damaged: its files have the hash {hash_of(contents)}.")
    for place in contents:
        if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
            raise SerializationError(f"The code {hash_} has a file outside of its folder: {place!r}.")
    return contents


def _write(folder: Path, contents: dict[str, bytes]) -> None:
    """Write the files, each at once: a reader sees all of a file or none of it."""
    sizes = {place: len(content) for place, content in contents.items()}
    for place, content in {**contents, _MANIFEST: json.dumps(sizes).encode()}.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.{os.getpid()}.new")
        scratch.write_bytes(content)
        os.replace(scratch, path)


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / _MANIFEST).read_bytes())
        return all((folder / place).stat().st_size == size for place, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


@lru_cache(maxsize=1)
def _cache() -> Path:
    """The folder of this node for bundles. No other user may write to it, since code is run from it."""
    folder = Path(tempfile.gettempdir()) / f"pyworkflow_ray-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="pyworkflow_ray-"))


def _forget_old(cache: Path) -> None:
    for folder in cache.iterdir():
        try:
            if time.time() - folder.stat().st_mtime > FORGET_AFTER:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # another process deletes it
