"""A disk that keeps through a loss of power only what was fsynced: the bytes of files and, apart from them, the entries
of folders. It stands below `os`, so what runs on it is the store as it is.

A folder's fsync keeps the names in it, not the folder's own name in its parent. What was not fsynced may be there after
the loss or not, name by name; bytes that were not are there up to some place.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


class Death(BaseException):
    """The process is no more: nothing may catch it, and whatever it still calls does nothing."""


@dataclass(eq=False)
class File:
    data: bytearray = field(default_factory=bytearray)
    kept: bytes | None = None  # what its last fsync saw


@dataclass(eq=False)
class Folder:
    entries: dict[str, File | Folder] = field(default_factory=dict)
    kept: dict[str, File | Folder] = field(default_factory=dict)


class ForgetfulDisk:
    """`root` is where it is mounted; after a loss of power that is another folder, with what was kept."""

    def __init__(self, folder: Path, chance: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self.losses = self.errors = 0
        self.error_chance = 0.0  # of an fsync that fails; it keeps nothing
        self._folder, self._chance = folder, chance
        self._top = Folder()
        self._open: dict[int, File | Folder] = {}
        self._calls_left: int | None = None
        self._mount()
        calls: dict[str, Callable[..., Any]] = {
            "open": self._opened, "write": self._written, "fsync": self._fsynced, "close": self._closed,
            "link": self._linked, "replace": self._replaced, "unlink": self._unlinked, "mkdir": self._made,
        }  # fmt: skip
        for name, ours in calls.items():
            monkeypatch.setattr(os, name, self._instead(getattr(os, name), ours))

    def die_after(self, calls: int) -> None:
        """The process dies at the call after so many."""
        self._calls_left = calls

    def revive(self) -> None:
        """Another process comes; the machine ran on, so it sees all that was written."""
        self._calls_left = None
        self._open.clear()

    def lose_power(self) -> None:
        """Another process comes, on what was kept. Half of the time nothing else survives, else by chance some."""
        self.revive()
        self.losses += 1
        keeps_some = self._chance.random() < 0.5
        self._top = self._left_of(self._top, keeps_some)
        self._mount()

    def _mount(self) -> None:
        root = self._folder / f"disk-{self.losses}"
        self._lay_out(self._top, root)
        self.root = root

    def _lay_out(self, folder: Folder, path: Path) -> None:
        path.mkdir()
        for name, node in folder.entries.items():
            if isinstance(node, Folder):
                self._lay_out(node, path / name)
        for name, node in folder.entries.items():
            if isinstance(node, File):
                (path / name).write_bytes(node.data)

    def _left_of(self, folder: Folder, keeps_some: bool) -> Folder:
        left = dict(folder.kept)
        if keeps_some:
            for name in sorted(folder.entries.keys() | folder.kept.keys()):
                if self._chance.random() < 0.5:  # this change of the folder came to the disk by itself
                    left.pop(name, None)
                    if name in folder.entries:
                        left[name] = folder.entries[name]
        entries: dict[str, File | Folder] = {}
        for name, node in left.items():
            if isinstance(node, Folder):
                entries[name] = self._left_of(node, keeps_some)
            else:
                some = self._chance.randint(0, len(node.data)) if keeps_some else 0
                data = node.kept if node.kept is not None else bytes(node.data[:some])
                entries[name] = File(bytearray(data), data)
        return Folder(entries, dict(entries))

    # -- Instead of the calls of the system ----------------------------------------------------------------------------

    def _instead(self, real: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *more: Any, **named: Any) -> Any:
            is_ours = first in self._open if isinstance(first, int) else Path(first).is_relative_to(self.root)
            return ours(real, first, *more, **named) if is_ours else real(first, *more, **named)

        return call

    def _step(self) -> None:
        if self._calls_left is None:
            return
        if self._calls_left <= 0:
            raise Death
        self._calls_left -= 1

    def _at(self, path: Path) -> File | Folder:
        node: File | Folder = self._top
        for part in path.relative_to(self.root).parts:
            assert isinstance(node, Folder), path
            node = node.entries[part]
        return node

    def _folder_of(self, path: Any) -> tuple[Folder, str]:
        folder = self._at(Path(path).parent)
        assert isinstance(folder, Folder), path
        return folder, Path(path).name

    def _opened(self, real: Callable[..., int], path: Any, flags: int, mode: int = 0o777) -> int:
        self._step()
        descriptor = real(path, flags, mode)
        if flags & os.O_CREAT:
            folder, name = self._folder_of(path)
            folder.entries[name] = File()
        self._open[descriptor] = self._at(Path(path))
        return descriptor

    def _written(self, real: Callable[..., int], descriptor: int, data: Any) -> int:
        self._step()
        count = real(descriptor, data)
        node = self._open[descriptor]
        assert isinstance(node, File)
        node.data += bytes(data[:count])
        return count

    def _fsynced(self, real: Callable[..., None], descriptor: int) -> None:
        self._step()
        if self._chance.random() < self.error_chance:
            self.errors += 1
            raise OSError(errno.EIO, "the disk did not answer")
        node = self._open[descriptor]
        if isinstance(node, Folder):
            node.kept = dict(node.entries)
        else:
            node.kept = bytes(node.data)

    def _closed(self, real: Callable[..., None], descriptor: int) -> None:
        self._open.pop(descriptor)
        real(descriptor)

    def _linked(self, real: Callable[..., None], source: Any, target: Any) -> None:
        self._step()
        real(source, target)
        folder, name = self._folder_of(target)
        folder.entries[name] = self._at(Path(source))

    def _replaced(self, real: Callable[..., None], source: Any, target: Any) -> None:
        self._step()
        real(source, target)
        folder, name = self._folder_of(target)
        folder.entries[name] = self._at(Path(source))
        before, old = self._folder_of(source)
        del before.entries[old]

    def _unlinked(self, real: Callable[..., None], path: Any) -> None:
        self._step()
        real(path)
        folder, name = self._folder_of(path)
        del folder.entries[name]

    def _made(self, real: Callable[..., None], path: Any, mode: int = 0o777) -> None:
        self._step()
        real(path, mode)
        folder, name = self._folder_of(path)
        folder.entries[name] = Folder()
