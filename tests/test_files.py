"""Files in directories that somebody else may have filled."""

import os
import resource
import signal
import threading

import pytest

import damo_torchrec as damo
from damo_torchrec.checkpoints.regular_file import NotRegularError, open_or_make, open_regular, read_regular
from damo_torchrec.files import replace_file, write_file, write_output


def test_a_regular_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert read_regular(tmp_path / "file", 7) == b"content"
    with pytest.raises(ValueError, match="larger than 6 bytes"):
        read_regular(tmp_path / "file", 6)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none", 1)


@pytest.mark.parametrize("opened", [open_regular, open_or_make])
@pytest.mark.parametrize("kind", ["symbolic link", "directory", "FIFO", "device"])
def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path, kind, opened):
    path = tmp_path / "path"
    match kind:
        case "symbolic link":
            path.symlink_to(tmp_path / "made")
        case "directory":
            path.mkdir()
        case "FIFO":
            os.mkfifo(path)
        case "device":
            try:
                os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
            except PermissionError:
                pytest.skip("no devices can be made here")
    with pytest.raises(NotRegularError, match=rf"{path} is a .*{kind}, expected a regular file"):
        opened(path)
    assert not (tmp_path / "made").exists()


def test_a_file_is_written_where_there_is_none(tmp_path):
    write_file(tmp_path / "new", b"content")
    assert (tmp_path / "new").read_bytes() == b"content"
    (tmp_path / "link").symlink_to(tmp_path / "new")
    with pytest.raises(damo.DamoError, match="cannot write 5 bytes"):
        write_file(tmp_path / "link", b"other")
    assert (tmp_path / "new").read_bytes() == b"content"


def test_a_users_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    real, link = tmp_path / "elsewhere" / "real", tmp_path / "link"
    link.symlink_to(tmp_path / "between")
    (tmp_path / "between").symlink_to(real)
    for content in (b"made", b"replaced"):
        write_output(link, content)
        assert real.read_bytes() == content
    assert link.is_symlink()
    with pytest.raises(damo.DamoError, match="no regular file"):
        replace_file(link, b"of the store, which follows no link")
    assert real.read_bytes() == b"replaced"
    assert [path.name for path in real.parent.iterdir()] == ["real"]


@pytest.mark.parametrize("write", [replace_file, write_output])
@pytest.mark.parametrize("kind", ["directory", "FIFO", "link to a FIFO", "device", "link to itself"])
def test_what_is_no_file_is_not_replaced(tmp_path, kind, write):
    path = tmp_path / "path"
    match kind:
        case "directory":
            path.mkdir()
        case "FIFO":
            os.mkfifo(path)
        case "link to a FIFO":
            os.mkfifo(tmp_path / "fifo")
            path.symlink_to("fifo")
        case "device":
            try:
                os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
            except PermissionError:
                pytest.skip("no devices can be made here")
        case "link to itself":
            path.symlink_to(path)
    before = {entry.name: os.lstat(entry) for entry in tmp_path.iterdir()}
    with pytest.raises(damo.DamoError, match=f"cannot write {tmp_path}.*no regular file"):
        write(path, b"content")
    after = {entry.name: os.lstat(entry) for entry in tmp_path.iterdir()}
    assert {name: (entry.st_ino, entry.st_mode) for name, entry in after.items()} == {
        name: (entry.st_ino, entry.st_mode) for name, entry in before.items()
    }


def test_files_of_similar_names_stay(tmp_path):
    for name in (".file.tmp", ".tmp", "file.tmp"):
        (tmp_path / name).write_text("mine")
    replace_file(tmp_path / "file", b"content")
    replace_file(tmp_path / ("x" * 255), b"content")  # the longest name there can be
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {
        ".file.tmp": "mine",
        ".tmp": "mine",
        "file.tmp": "mine",
        "file": "content",
        "x" * 255: "content",
    }
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert (tmp_path / "file").stat().st_mode == plain.stat().st_mode


def test_threads_replace_one_file_at_a_time(tmp_path):
    path, errors = tmp_path / "file", []
    contents = [bytes([65 + i]) * 1000 for i in range(4)]

    def write(content):
        try:
            for _ in range(50):
                write_output(path, content)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_bytes() in contents
    for thread in threads:
        thread.join()
    assert errors == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        with pytest.raises(damo.errors.OutOfSpaceError, match=f"cannot write {path}"):
            replace_file(path, b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"file": "before"}
