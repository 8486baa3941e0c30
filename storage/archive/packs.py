"""Where archived bytes lie: a file alone under its own hash, or many small ones in a pack.

A pack is a plain tar file under its own hash: a million invoices are some thousand objects, each invoice is read by its
range alone, and with nothing but the object store any tar program still gives back every file with its name.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

PACK_BYTES_MAX = 16 * 1024 * 1024
PACK_FILES_MAX = 2_000


@dataclass(frozen=True)
class Place:
    """A range of an object."""

    object_key: str
    start: int
    length: int


def alone_key(tenant_id: str, digest: str) -> str:
    return f"archive/{tenant_id}/{digest[:2]}/{digest}"


def pack_key(tenant_id: str, digest: str) -> str:
    return f"archive/{tenant_id}/packs/{digest}.tar"


@dataclass(frozen=True)
class Packed:
    """An object to store, and which file (by hash) lies where in it."""

    key: str
    data: bytes
    places: dict[bytes, Place]
    until: date  # the last day on which all of it must be kept


def pack(tenant_id: str, files: Sequence[tuple[bytes, str, bytes]], until: date) -> Iterator[Packed]:
    """The objects for files of (hash, name, bytes), in their order; the same files give the same objects.

    All are to be kept until the same day: a store that locks objects locks all files of a pack alike.
    """
    group: list[tuple[bytes, str, bytes]] = []
    size = 0
    for one in files:
        if group and (size + len(one[2]) > PACK_BYTES_MAX or len(group) >= PACK_FILES_MAX):
            yield _packed(tenant_id, group, until)
            group, size = [], 0
        group.append(one)
        size += len(one[2])
    if group:
        yield _packed(tenant_id, group, until)


def _packed(tenant_id: str, files: Sequence[tuple[bytes, str, bytes]], until: date) -> Packed:
    if len(files) == 1:
        digest, _, data = files[0]
        key = alone_key(tenant_id, digest.hex())
        return Packed(key, data, {digest: Place(key, 0, len(data))}, until)
    target = io.BytesIO()
    starts: dict[bytes, tuple[int, int]] = {}
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for digest, name, data in files:
            # Named by hash and file name, without time or owner: the same files are the same bytes.
            info = tarfile.TarInfo(f"{digest.hex()}/{name.replace('/', '-') or 'file'}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            starts[digest] = (target.tell() - _padded(len(data)), len(data))
    content = target.getvalue()
    key = pack_key(tenant_id, hashlib.sha256(content).hexdigest())
    places = {digest: Place(key, start, length) for digest, (start, length) in starts.items()}
    return Packed(key, content, places, until)


def _padded(length: int) -> int:
    return -(-length // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def is_whole(key: str, data: bytes) -> bool:
    """Whether an object is what its key says: the hash of its bytes."""
    return hashlib.sha256(data).hexdigest() == key.rpartition("/")[2].removesuffix(".tar")


def file_names(data: bytes) -> dict[bytes, str]:
    """The files of a pack by hash, read from the pack alone."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        pairs = [member.name.split("/", 1) for member in tar]
    return {bytes.fromhex(digest): name for digest, name in pairs}
