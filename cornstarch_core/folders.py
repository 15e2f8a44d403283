"""Replacing a folder as a whole: whoever looks sees the old one or the new one, also after a crash."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replaced_folder"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def replaced_folder(folder: str | os.PathLike[str], stale: Callable[[str], bool]) -> Iterator[Path]:
    """Yield an empty folder to write to; on a clean exit it takes the place of ``folder``.

    Args:
        folder: the folder to make or replace. Its other files are carried over.
        stale: whether a file name of the old folder belongs to what is replaced, and must not be carried over.
    """
    target = Path(folder).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.saving-", dir=target.parent))
    try:
        staging.chmod(0o777 & ~_umask())
        yield staging
        if target.exists():
            _carry_over(target, staging, stale)
            _exchange(staging, target)
        else:
            os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # what failed, or, after an exchange, the old folder


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _carry_over(old: Path, new: Path, stale: Callable[[str], bool]) -> None:
    for entry in old.iterdir():
        if (new / entry.name).exists() or stale(entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(str(entry), str(new / entry.name))


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=False)
    return target


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders: in one step where the system can (Linux), else in two renames."""
    libc = ctypes.CDLL(None, use_errno=True)
    rename = getattr(libc, "renameat2", None)
    paths = os.fsencode(one), os.fsencode(other)
    if rename is not None and rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return
    aside = one.with_name(one.name + ".old")
    os.replace(other, aside)
    os.replace(one, other)
    os.replace(aside, one)
