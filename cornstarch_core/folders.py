"""Replacing a folder as a whole: whoever looks sees the old one or the new one, also after a crash."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["is_weight_file", "replaced_folder"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def is_weight_file(name: str, variant: str | None = None) -> bool:
    """Whether a file of an old folder holds weights of this variant of its model, so that a new one replaces it."""
    of_variant = rf"\.{re.escape(variant)}" if variant else ""
    shard = r"(-\d{5}-of-\d{5})?"
    names = rf"(model|adapter_model)({of_variant}{shard}|{shard}{of_variant})\.safetensors"
    index = rf"(model|adapter_model)\.safetensors\.index{of_variant}\.json"
    return re.fullmatch(f"{names}|{index}", name) is not None


@contextmanager
def replaced_folder(folder: str | os.PathLike[str], stale: Callable[[str], bool]) -> Iterator[Path]:
    """Yield an empty folder to write to; on a clean exit it takes the place of ``folder``.

    The two are exchanged in one step, so that a crash leaves the old folder or the new one. Where that can't be, since
    the folder is the working directory, a mount point, or lies in one that may not be written to, its files are
    replaced one by one, each as a whole, and the config last.

    Args:
        folder: the folder to make or replace; a link is followed. Its other files are carried over.
        stale: whether a file name of the old folder belongs to what is replaced, and must not be carried over.
    """
    target = Path(os.path.realpath(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    at_once = _can_be_exchanged(target)
    home = target if target.exists() and not at_once else target.parent
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.saving-", dir=home))
    try:
        if target.exists():
            shutil.copymode(target, staging)
        else:
            staging.chmod(0o777 & ~_umask())
        yield staging
        if not target.exists():
            os.replace(staging, target)
        elif not (at_once and _exchanged(staging, target, stale)):
            _replace_files(staging, target, stale)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # what failed, or, after an exchange, the old folder


def _can_be_exchanged(target: Path) -> bool:
    here = Path.cwd()
    return (
        os.access(target.parent, os.W_OK | os.X_OK)
        and not os.path.ismount(target)
        and target != here
        and target not in here.parents
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _exchanged(new: Path, target: Path, stale: Callable[[str], bool]) -> bool:
    """Swap two folders: in one step where the system can (Linux), else in two renames. ``False`` if it can't."""
    carried = _carry_over(target, new, stale)
    libc = ctypes.CDLL(None, use_errno=True)
    rename = getattr(libc, "renameat2", None)
    paths = os.fsencode(new), os.fsencode(target)
    if rename is not None and rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return True
    aside = new.with_name(new.name + ".old")
    try:
        os.replace(target, aside)
    except OSError:  # a mount that does not look like one, an overlay
        for path in carried:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return False
    os.replace(new, target)
    os.replace(aside, new)
    return True


def _carry_over(old: Path, new: Path, stale: Callable[[str], bool]) -> list[Path]:
    """Link or copy the other files; returns what was carried over."""
    carried = []
    for entry in old.iterdir():
        if (new / entry.name).exists() or stale(entry.name) or entry == new:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(str(entry), str(new / entry.name))
        carried.append(new / entry.name)
    return carried


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=False)
    return target


def _replace_files(new: Path, target: Path, stale: Callable[[str], bool]) -> None:
    """Put every entry in place, the config last, then take away what is stale."""
    written = sorted(new.iterdir(), key=lambda entry: (entry.name == "config.json", entry.name))
    for entry in written:
        place = target / entry.name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        shutil.move(str(entry), str(place)) if entry.is_dir() else os.replace(entry, place)
    names = {entry.name for entry in written}
    for entry in target.iterdir():
        if stale(entry.name) and entry.name not in names:
            entry.unlink()
