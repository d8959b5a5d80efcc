"""Fetches Debian, npm and PyPI packages with their own clients; unpacks them safely.

Nothing is installed and root is not needed.
"""

import base64
import contextlib
import dataclasses
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from meta_opt.data.zip_members import ZIP_ERRORS, read_member


class PackageError(RuntimeError):
    """A package cannot be fetched or is not what was expected."""


@dataclasses.dataclass(frozen=True)
class DebianPackage:
    """A package of the Debian archive, in the version of the machine's release.

    Attributes:
        name: name of the package.
        members: folders of the package to unpack, such as ``usr/share/x``.
        known: (version, SHA-256) of known versions; apt itself verifies the signatures
            of all versions.
    """

    name: str
    members: tuple[str, ...]
    known: tuple[tuple[str, str], ...] = ()

    @property
    def folder(self) -> str:
        """The folder that it is unpacked to."""
        return self.name

    @property
    def pattern(self) -> str:
        """What the archive's file name looks like."""
        return f"{self.name}_*.deb"

    def command(self, folder: Path) -> list[str]:
        """The command that fetches it to the folder that it runs in."""
        return ["apt-get", "download", self.name]

    def verify(self, archive: Path) -> None:
        """Raises PackageError if the hash of a known version does not match."""
        for version, digest in self.known:
            if version in archive.name and _digest(archive, "sha256").hex() != digest:
                raise PackageError(
                    f"{archive} is not {self.name} {version}: its SHA-256 is not "
                    f"{digest}. Delete it and try again."
                )

    @contextlib.contextmanager
    def open(self, archive: Path) -> Iterator[tarfile.TarFile]:
        """Opens the files of the package as a stream."""
        _require("dpkg-deb", f"unpack {archive}", "the Debian package dpkg")
        command = ["dpkg-deb", "--fsys-tarfile", os.fspath(archive)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            with tarfile.open(fileobj=process.stdout, mode="r|") as files:
                yield files
            # The tar stream may end before the pipe does; closing it early would fail
            # dpkg-deb.
            while process.stdout is not None and process.stdout.read(1 << 16):
                pass
        if process.returncode:
            raise PackageError(f"{archive} is damaged. Delete it and try again.")


@dataclasses.dataclass(frozen=True)
class NpmPackage:
    """A package of the npm registry, in one version.

    Attributes:
        name: the package.
        version: its version.
        integrity: ``sha512-`` and the base64 of the archive's SHA-512, as in npm.
        archive: file name of the archive.
        members: folders and files of it that are wanted, such as ``package/img``.
    """

    name: str
    version: str
    integrity: str
    archive: str
    members: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The folder that it is unpacked to."""
        return self.archive.removesuffix(".tgz")

    @property
    def pattern(self) -> str:
        """What the archive's file name looks like."""
        return self.archive

    def command(self, folder: Path) -> list[str]:
        """The command that fetches it to the folder that it runs in."""
        return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]

    def verify(self, archive: Path) -> None:
        """Raises PackageError if the archive's hash is not the pinned one."""
        found = base64.b64encode(_digest(archive, "sha512")).decode()
        if f"sha512-{found}" != self.integrity:
            raise PackageError(
                f"{archive} is not {self.name}@{self.version}: its hash is "
                f"sha512-{found}, not {self.integrity}. Delete it and try again."
            )

    @contextlib.contextmanager
    def open(self, archive: Path) -> Iterator[tarfile.TarFile]:
        """Opens the files of the package as a stream."""
        with tarfile.open(archive, mode="r|gz") as files:
            yield files


@dataclasses.dataclass(frozen=True)
class PypiPackage:
    """A small package of the Python Package Index, in one version, as a wheel.

    Attributes:
        name: the package.
        version: its version.
        sha256: hash of the wheel, hexadecimal.
        archive: file name of the wheel.
        members: folders and files of it that are wanted.
    """

    name: str
    version: str
    sha256: str
    archive: str
    members: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The folder that it is unpacked to."""
        return f"{self.name}-{self.version}"

    @property
    def pattern(self) -> str:
        """What the archive's file name looks like."""
        return self.archive

    def command(self, folder: Path) -> list[str]:
        """The command that fetches it to the folder that it runs in."""
        return [
            *(sys.executable, "-m", "pip", "--quiet", "download", "--no-deps"),
            *("--only-binary=:all:", f"{self.name}=={self.version}"),
        ]

    def verify(self, archive: Path) -> None:
        """Raises PackageError if the archive's hash is not the pinned one."""
        found = _digest(archive, "sha256").hex()
        if found != self.sha256:
            raise PackageError(
                f"{archive} is not {self.name}=={self.version}: its SHA-256 is "
                f"{found}, not {self.sha256}. Delete it and try again."
            )

    @contextlib.contextmanager
    def open(self, archive: Path) -> Iterator[tarfile.TarFile]:
        """Opens the files of the package; a wheel is a zip and is turned into a tar."""
        buffer = io.BytesIO()
        try:
            with (
                zipfile.ZipFile(archive) as wheel,
                tarfile.open(fileobj=buffer, mode="w") as files,
            ):
                for item in wheel.infolist():
                    if not item.is_dir():
                        member = tarfile.TarInfo(item.filename)
                        member.size = item.file_size
                        files.addfile(member, io.BytesIO(read_member(wheel, item)))
        except ZIP_ERRORS as error:
            raise PackageError(
                f"{archive} is damaged. Delete it and try again."
            ) from error
        buffer.seek(0)
        with tarfile.open(fileobj=buffer) as files:
            yield files


Package = DebianPackage | NpmPackage | PypiPackage


def fetch(package: Package, folder: Path) -> Path:
    """Downloads a package's archive, unless it is there already, and checks its hash.

    Args:
        package: the package to fetch.
        folder: folder of archives; manually downloaded ones are used as well.

    Returns:
        The archive.

    Raises:
        PackageError: if the client is missing or fails, or the hash does not match.
    """
    folder.mkdir(parents=True, exist_ok=True)
    present = sorted(folder.glob(package.pattern))
    if not present:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as scratch:
            _download(package, Path(scratch), folder)
            found = sorted(Path(scratch).glob(package.pattern))
            if not found:
                raise PackageError(
                    f"`{' '.join(package.command(folder))}` brought no "
                    f"{package.pattern}"
                )
            package.verify(found[-1])
            os.replace(found[-1], folder / found[-1].name)
        present = sorted(folder.glob(package.pattern))
    else:
        package.verify(present[-1])
    return present[-1]


def unpack(package: Package, archive: Path, folder: Path) -> None:
    """Unpacks the wanted members of a package atomically.

    Members that would leave the folder, device files and the like are refused
    (``filter="data"`` of :mod:`tarfile`).

    Raises:
        PackageError: if the archive is damaged or has none of the members.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as name:
        scratch = Path(name) / folder.name
        scratch.mkdir()
        found = 0
        try:
            with package.open(archive) as files:
                for member in tqdm(files, desc=archive.name, unit="file", leave=False):
                    if _wanted(member.name, package.members):
                        files.extract(member, scratch, filter="data")
                        found += 1
        # For damaged headers, tarfile may also raise ValueError, and zlib its own
        # error.
        except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
            raise PackageError(
                f"{archive} cannot be unpacked: {error}. Delete it and try again."
            ) from error
        if not found:
            raise PackageError(f"{archive} has no {' or '.join(package.members)}")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(scratch, folder)


def _download(package: Package, scratch: Path, folder: Path) -> None:
    """Runs the package's client in ``scratch``; messages refer to ``folder``."""
    command = package.command(scratch)
    by_hand = f"put {package.pattern} into {folder} by hand and run this again"
    providers = {"npm": "Node.js", "apt-get": "apt (on Debian or a relative)"}
    provider = providers.get(command[0], "Python")
    _require(command[0], f"fetch {package.name}", provider, by_hand)
    result = _run(command, scratch)
    if result.returncode and command[0] == "apt-get" and os.geteuid() == 0:
        # A fresh container has no package lists yet.
        _run(["apt-get", "update"], scratch)
        result = _run(command, scratch)
    if result.returncode:
        hint = "; run `apt-get update` first" if command[0] == "apt-get" else ""
        raise PackageError(
            f"`{' '.join(command)}` failed{hint}, or {by_hand}.\n"
            f"{result.stderr.strip()}"
        )


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False
    )


def _require(client: str, purpose: str, provider: str, otherwise: str = "") -> None:
    if shutil.which(client) is None:
        raise PackageError(
            f"`{client}` is needed to {purpose} and is not on the PATH: install "
            f"{provider}" + (f", or {otherwise}." if otherwise else ".")
        )


def _wanted(name: str, members: tuple[str, ...]) -> bool:
    name = name.removeprefix("./")
    return any(name == m or name.startswith(f"{m}/") for m in members)


def _digest(path: Path, algorithm: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).digest()
