"""A folder on any file system that fsspec supports. A file appears in it only once it is complete."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator
from typing import IO, Any

from sam_jax.errors import MissingPackage, UserError

WORK = ".work"  # subfolder for unfinished results: parts, and files that are being written
CLIENTS = ("botocore", "aiohttp", "gcsfs", "google", "azure")  # packages whose errors are no OSErrors
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory")  # one request writes a complete file


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder at a URL. Names of files in it are relative paths, joined by slashes.

    It can be pickled, and workers on other machines see the same files. Credentials and addresses of object stores come
    from the stores' own environment variables and files, or from fsspec's configuration.
    """

    url: str

    @classmethod
    def at(cls, url: str) -> Folder:
        """Returns the folder at a URL, or at an absolute or relative local path.

        Raises:
            UserError: fsspec does not support the protocol.
            MissingPackage: the package for the protocol is not installed.
        """
        file_system, path = open_url(url)
        return cls(file_system.unstrip_protocol(path).rstrip("/"))

    @property
    def shown(self) -> str:
        """The folder's name in messages: the local path, or the URL."""
        return self.url.removeprefix("file://")

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's file system."""
        return self.url.startswith("file://")

    def exists(self, name: str) -> bool:
        """Returns whether there is a file of this name."""
        file_system, path = self._path(name)
        return file_system.isfile(path)

    def size(self, name: str) -> int | None:
        """Returns the size of a file in bytes; None if it does not exist."""
        file_system, path = self._path(name)
        try:
            return int(file_system.size(path))
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """Returns the sorted names of files and folders in a subfolder; none if it does not exist."""
        file_system, path = self._path(folder)
        try:
            return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in file_system.ls(path, detail=False))
        except FileNotFoundError:
            return []

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Returns the contents of a file, or its bytes from `start` up to and not including `end`."""
        file_system, path = self._path(name)
        return file_system.cat_file(path, start=start, end=end)

    @contextlib.contextmanager
    def open_to_read(self, name: str) -> Iterator[IO[bytes]]:
        """Opens a file to read from."""
        file_system, path = self._path(name)
        with file_system.open(path, "rb") as file:
            yield file

    @contextlib.contextmanager
    def open_to_write(self, name: str, work: str = WORK) -> Iterator[IO[bytes]]:
        """Opens a file to write to, which gets its name when the block ends without an error.

        Until then it is in the folder `work` under a unique name, since runners may do the same work twice at the same
        time. Object stores need this too: when an upload is interrupted, they keep the part that has arrived.

        Raises:
            OSError: the file can't be written; the message says that finished results are kept.
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
        """Writes a complete file, as `open_to_write` does; for an object store in one request."""
        if self.url.partition("://")[0] not in OBJECT_STORES:
            with self.open_to_write(name, work) as file:
                file.write(data)
            return
        file_system, path = self._path(name)
        try:
            file_system.pipe_file(path, data)
        except OSError as error:
            raise self._not_written(name, error) from error

    def remove(self, folder: str) -> None:
        """Deletes a subfolder with all its contents, if it exists."""
        file_system, path = self._path(folder)
        with contextlib.suppress(FileNotFoundError):
            file_system.rm(path, recursive=True)

    def remove_if_empty(self, folder: str) -> None:
        """Deletes a subfolder if it is empty."""
        file_system, path = self._path(folder)
        with contextlib.suppress(OSError):  # it does not exist, or other processes are using it
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
    """Converts errors of object stores' clients, such as missing credentials, to OSErrors, which are shown to the user.

    `Folder` does not do so itself: a store that can't be reached must end a run, and not count as a bad image.
    """
    try:
        yield
    except Exception as error:  # the clients have no base class in common; other errors are raised again
        if type(error).__module__.partition(".")[0] in CLIENTS:
            raise OSError(f"{error}; what is finished is kept, the same command goes on with the rest") from error
        raise


def open_url(url: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a URL or local path, and the path in it.

    Raises:
        UserError: fsspec does not support the protocol.
        MissingPackage: fsspec, or its package for the protocol, is not installed.
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
