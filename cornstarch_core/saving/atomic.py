"""Replace a folder as a whole: a reader sees the old folder or the new folder, even after a crash."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["is_weight_file", "replaced_folder"]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # constants of Linux


def is_weight_file(name: str, variant: str | None = None) -> bool:
    """Whether a file of the old folder holds model weights of this variant, and must not stay in the new folder."""
    of_variant = rf"\.{re.escape(variant)}" if variant else ""
    shard = r"(-\d{5}-of-\d{5})?"
    end = rf"({of_variant}{shard}|{shard}{of_variant})\.safetensors|\.safetensors\.index{of_variant}\.json"
    return re.fullmatch(rf"(model|adapter_model)({end})", name) is not None


@contextmanager
def replaced_folder(folder: str | os.PathLike[str], stale: Callable[[str], bool]) -> Iterator[Path]:
    """Yield an empty folder to write to, which replaces ``folder`` if the ``with`` block raises no error.

    The two folders are exchanged in one step, so that a crash leaves the old folder or the new folder. One step is
    impossible if the folder is or contains the working directory, is a mount point, or lies in a folder without write
    permission. Then each file is replaced as a whole, one file after another, and the config is replaced last.

    Args:
        folder: folder to create or replace. If it is a symbolic link, the target of the link is replaced. Files of the
            old folder that are neither written nor stale stay in the new folder.
        stale: function that returns whether a file name of the old folder belongs to the replaced content. Such a file
            does not stay in the new folder.
    """
    target = Path(os.path.realpath(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    is_in_use = os.path.ismount(target) or target in (Path.cwd(), *Path.cwd().parents)
    in_place = target.exists() and (is_in_use or not os.access(target.parent, os.W_OK | os.X_OK))
    staging = (target if in_place else target.parent) / f".{target.name}.saving-{secrets.token_hex(4)}"
    staging.mkdir()
    try:
        if target.exists():
            shutil.copymode(target, staging)
        yield staging
        written = sorted(os.listdir(staging), key=lambda name: (name == "config.json", name))  # the config last
        if not target.exists():
            os.replace(staging, target)
        elif in_place or not _exchange(staging, target, written, stale):
            _replace_files(staging, target, written, stale)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # the incomplete new folder or, after an exchange, the old folder


def _exchange(new: Path, target: Path, written: list[str], stale: Callable[[str], bool]) -> bool:
    """Exchange two folders, in one step on Linux, else with two renames. Return ``False`` if this is impossible."""
    others = [entry for entry in target.iterdir() if entry.name not in written and not stale(entry.name)]
    for entry in others:
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(entry, new / entry.name)
    rename = getattr(ctypes.CDLL(None), "renameat2", lambda *arguments: -1)
    if rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE) == 0:
        return True
    aside = new.with_name(new.name + ".old")
    try:
        os.replace(target, aside)
    except OSError:  # an overlay, or a mount point that os.path.ismount does not recognise
        return False
    os.replace(new, target)
    os.replace(aside, new)
    return True


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=False)


def _replace_files(new: Path, target: Path, written: list[str], stale: Callable[[str], bool]) -> None:
    """Move every written entry to ``target``, then remove the stale files of ``target``."""
    for name in written:
        if (target / name).is_dir():
            _remove(target / name)
        shutil.move(new / name, target / name)
    for name in os.listdir(target):
        if stale(name) and name not in written:
            _remove(target / name)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
