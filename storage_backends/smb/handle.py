"""An opened file or directory of a share. Blocking; used by one thread at a time.

`smbclient` opens it, since that follows DFS referrals; what smbclient can do by name only (rename, delete, look) is
sent for the open handle: nobody can come between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from smbprotocol.file_info import (
    FileAttributes,
    FileAttributeTagInformation,
    FileDispositionInformation,
    FileFsFullSizeInformation,
    FileInformationClass,
    FileInternalInformation,
    FileLinkInformation,
    FileRenameInformation,
    FileStandardInformation,
)
from smbprotocol.open import Open, SMB2QueryInfoRequest, SMB2QueryInfoResponse, SMB2SetInfoRequest
from smbprotocol.reparse_point import ReparseTags

from storage_backends.base import ObjectInfo
from storage_backends.smb.flow import Reader, Writer

# Tags of what leads elsewhere. Others (deduplicated, tiered to the cloud) are files like any other.
_LEADS_ELSEWHERE = {ReparseTags.IO_REPARSE_TAG_SYMLINK, ReparseTags.IO_REPARSE_TAG_MOUNT_POINT}


class Handle:
    """What `smbclient.open_file(..., buffering=0)` returned."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    @property
    def size(self) -> int:
        """Return the file's size when it was opened."""
        return int(self._raw.fd.end_of_file)

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes; fewer at the end, and when the server's credit is short."""
        self._raw.seek(offset)
        return bytes(self._raw.read(length))

    def writer(self) -> Writer:
        """Return what appends to the file, which is empty."""
        return Writer(self._raw.fd)

    def reader(self, offset: int, end: int) -> Reader:
        """Return what reads a range of the file."""
        return Reader(self._raw.fd, offset, end)

    def flush(self) -> None:
        """Have the server write the file (or the directory's names) to its medium."""
        self._raw.fd.flush()

    def stored_size(self) -> int:
        """Ask for the file's size now."""
        return int(self._query(FileStandardInformation)["end_of_file"].get_value())

    def file_id(self) -> int:
        """Return the number that stays with the file whatever its name; 0 when the server has none."""
        return int(self._query(FileInternalInformation)["index_number"].get_value())

    def info(self, key: str) -> ObjectInfo | None:
        """Describe the file as it was when it was opened; None when it is a symbolic link."""
        fd = self._raw.fd
        if fd.file_attributes & FileAttributes.FILE_ATTRIBUTE_REPARSE_POINT:
            tag = self._query(FileAttributeTagInformation)["reparse_tag"].get_value()
            if tag in _LEADS_ELSEWHERE:
                return None
        return object_info(key, file_id=self.file_id(), size=fd.end_of_file, modified=fd.last_write_time)

    def rename(self, name: str, *, replace: bool) -> None:
        """Give the file another name in its directory. Refuses a taken name unless `replace`, which is atomic."""
        self._give_name(FileRenameInformation(), name, replace=replace)

    def link(self, name: str) -> None:
        """Give the file one more name in its directory. Refuses a taken name."""
        self._give_name(FileLinkInformation(), name, replace=False)

    def delete(self) -> None:
        """Have the server remove the file when it is closed."""
        request = FileDispositionInformation()
        request["delete_pending"] = True
        self._set(request)

    def free_bytes(self) -> int:
        """Return what the share still takes from this user."""
        space = self._query(FileFsFullSizeInformation)
        unit = space["sectors_per_unit"].get_value() * space["bytes_per_sector"].get_value()
        return int(space["caller_available_units"].get_value() * unit)

    def entries(self) -> Iterator[tuple[str, bool, ObjectInfo]]:
        """Yield name, whether it is a regular file, and description of all that is in the directory: one query."""
        for entry in self._raw.query_directory("*", FileInformationClass.FILE_ID_FULL_DIRECTORY_INFORMATION):
            name = entry["file_name"].get_value().decode("utf-16-le")
            attributes = entry["file_attributes"].get_value()
            regular = not attributes & FileAttributes.FILE_ATTRIBUTE_DIRECTORY
            if attributes & FileAttributes.FILE_ATTRIBUTE_REPARSE_POINT:
                # [MS-FSCC] 2.4.21: of these the field of that name holds the tag.
                regular = regular and entry["ea_size"].get_value() not in _LEADS_ELSEWHERE
            yield (
                name,
                regular,
                object_info(
                    name,
                    file_id=entry["file_id"].get_value(),
                    size=entry["end_of_file"].get_value(),
                    modified=entry["last_write_time"].get_value(),
                ),
            )

    def close(self) -> None:
        """Close it. When that fails it is forgotten: the server closes what belongs to a lost connection."""
        try:
            self._raw.close()
        except BaseException:
            self.forget()
            raise

    def forget(self) -> None:
        """Let go without a word to the server."""
        # An object that is dropped while it counts as open warns; one with a handle that never was open does not.
        self._raw.fd = Open(self._raw.fd.tree_connect, self._raw.fd.file_name)

    def _give_name(self, request: Any, name: str, *, replace: bool) -> None:
        fd = self._raw.fd
        directory = fd.file_name.rpartition("\\")[0]
        root = fd.tree_connect.share_name[2:]
        if fd.tree_connect.is_dfs_share and directory.startswith(root):  # there, only opening takes the whole path
            directory = directory[len(root) :].strip("\\")
        request["replace_if_exists"] = replace
        request["file_name"] = f"{directory}\\{name}" if directory else name
        self._set(request)

    def _query(self, kind: type[Any]) -> Any:
        asked = kind()
        request = SMB2QueryInfoRequest()
        request["info_type"] = asked.INFO_TYPE
        request["file_info_class"] = asked.INFO_CLASS
        request["file_id"] = self._raw.fd.file_id
        request["output_buffer_length"] = len(asked)
        response = SMB2QueryInfoResponse()
        response.unpack(self._ask(request))
        return response.parse_buffer(kind)

    def _set(self, info: Any) -> None:
        request = SMB2SetInfoRequest()
        request["info_type"] = info.INFO_TYPE
        request["file_info_class"] = info.INFO_CLASS
        request["file_id"] = self._raw.fd.file_id
        request["buffer"] = info
        self._ask(request)

    def _ask(self, request: Any) -> bytes:
        tree = self._raw.fd.tree_connect
        connection = tree.session.connection
        sent = connection.send(request, tree.session.session_id, tree.tree_connect_id)
        return bytes(connection.receive(sent)["data"].get_value())


def object_info(key: str, *, file_id: int, size: int, modified: datetime) -> ObjectInfo:
    """Describe an object from what the server told of its file."""
    modified = modified if modified.tzinfo else modified.replace(tzinfo=UTC)
    microseconds = int(modified.timestamp() * 1_000_000)
    return ObjectInfo(key=key, size=int(size), etag=f"{file_id:x}-{size:x}-{microseconds:x}", modified=modified)


@contextmanager
def closing(handle: Handle) -> Iterator[Handle]:
    """Close the handle after the block; when the block failed, its error is the one that is raised."""
    try:
        yield handle
    except BaseException:
        with suppress(Exception):
            handle.close()
        raise
    handle.close()
