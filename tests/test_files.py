"""Files in directories that somebody else may have filled."""

import os

import pytest

import damo_torchrec as damo
from damo_torchrec.checkpoints.regular_file import NotRegularError, open_or_make, open_regular, read_regular
from damo_torchrec.files import write_file


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
