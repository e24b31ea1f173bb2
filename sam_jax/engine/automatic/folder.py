"""A folder on any file system that fsspec knows, in which every file is whole or not there."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator
from typing import IO, Any

from sam_jax.errors import MissingPackage, UserError

WORK = ".work"  # of what is not finished: parts, and files that are being written
CLIENTS = ("botocore", "aiohttp", "gcsfs", "google", "azure")  # whose errors are no OSErrors
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory")  # what is put there at once is there whole


@dataclasses.dataclass(frozen=True)
class Folder:
    """Names are relative to the folder, joined by slashes. Can be pickled; workers elsewhere see the same files.

    Credentials and addresses of object stores come from their own variables and files, or from fsspec's configuration.
    """

    url: str

    @classmethod
    def at(cls, url: str) -> Folder:
        """The folder at a URL or a local path, which may be a relative one.

        Raises:
            ValueError: a protocol that fsspec does not know.
            ImportError: the package for the protocol is not installed.
        """
        file_system, path = open_url(url)
        return cls(file_system.unstrip_protocol(path).rstrip("/"))

    @property
    def shown(self) -> str:
        """For people."""
        return self.url.removeprefix("file://")

    @property
    def is_local(self) -> bool:
        return self.url.startswith("file://")

    def exists(self, name: str) -> bool:
        file_system, path = self._path(name)
        return file_system.isfile(path)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it is not there."""
        file_system, path = self._path(name)
        try:
            return int(file_system.size(path))
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """Of the files and folders in one below this; none if it is not there."""
        file_system, path = self._path(folder)
        try:
            return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in file_system.ls(path, detail=False))
        except FileNotFoundError:
            return []

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """A file, or the bytes from `start` up to `end`."""
        file_system, path = self._path(name)
        return file_system.cat_file(path, start=start, end=end)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        file_system, path = self._path(name)
        with file_system.open(path, "rb") as file:
            yield file

    @contextlib.contextmanager
    def writing(self, name: str, work: str = WORK) -> Iterator[IO[bytes]]:
        """A file to write to, which has its name when the block ends without an error.

        Until then it lies in the folder `work` under a name of its own: runners may do the same work twice at once.
        Object stores too: of an upload that an error ends they would keep what had come.

        Raises:
            OSError: it can't be written; says that what is finished is kept.
        """
        file_system, path = self._path(name)
        temporary = f"{self._path(work)[1]}/{uuid.uuid4().hex}.tmp"
        try:
            for target in (path, temporary):
                file_system.makedirs(target.rpartition("/")[0], exist_ok=True)
            with file_system.open(temporary, "wb") as file:
                yield file
            file_system.mv(temporary, path)
        except BaseException as error:  # raised again once nothing is left behind
            with contextlib.suppress(OSError):
                file_system.rm_file(temporary)
            if isinstance(error, OSError):
                raise self._not_written(name, error) from error
            raise

    def write(self, name: str, data: bytes, work: str = WORK) -> None:
        """A whole file, as with `writing`; one request to an object store."""
        if self.url.partition("://")[0] not in OBJECT_STORES:
            with self.writing(name, work) as file:
                file.write(data)
            return
        file_system, path = self._path(name)
        try:
            file_system.pipe_file(path, data)
        except OSError as error:
            raise self._not_written(name, error) from error

    def remove(self, folder: str) -> None:
        """A folder with all in it; nothing if it is not there."""
        file_system, path = self._path(folder)
        with contextlib.suppress(FileNotFoundError):
            file_system.rm(path, recursive=True)

    def remove_if_empty(self, folder: str) -> None:
        file_system, path = self._path(folder)
        with contextlib.suppress(OSError):  # not there, or other processes are at work in it
            file_system.rmdir(path)

    def _not_written(self, name: str, error: OSError) -> OSError:
        return OSError(
            f"could not write {self.shown}/{name}: {error.strerror or error}; what is finished is kept, the same "
            "command goes on with the rest"
        )

    def _path(self, name: str) -> tuple[Any, str]:
        file_system, path = open_url(self.url)
        return file_system, f"{path}/{name}"


@contextlib.contextmanager
def as_os_errors() -> Iterator[None]:
    """Errors of object stores' clients, such as no connection and no credentials, become OSErrors, which users read.

    Not as early as in `Folder`: a store that can't be reached must end a run, and not make a bad image of each.
    """
    try:
        yield
    except Exception as error:  # the clients share no class; what is not theirs is raised again
        if type(error).__module__.partition(".")[0] in CLIENTS:
            raise OSError(f"{error}; what is finished is kept, the same command goes on with the rest") from error
        raise


def open_url(url: str) -> tuple[Any, str]:
    """(file system, path in it) of a URL or a local path.

    Raises:
        ValueError: a protocol that fsspec does not know.
        ImportError: fsspec, or its package for the protocol, is not installed.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingPackage("files are reached by fsspec; pip install 'sam_jax[beam]'") from error
    try:
        return url_to_fs(url, use_listings_cache=False)  # other processes write too
    except ImportError as error:
        raise MissingPackage(str(error)) from error
    except ValueError as error:
        raise UserError(f"expected a path or a URL, got {url}: {error}") from error
