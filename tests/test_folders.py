"""Replacing a folder as a whole."""

from __future__ import annotations

import ctypes
import os

import pytest

from cornstarch_core.folders import replaced_folder


def contents(folder) -> dict[str, str]:
    """File names and texts."""
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def nothing_is_stale(name: str) -> bool:
    """Every other file is carried over."""
    return False


@pytest.mark.parametrize("system", ["exchange", "two renames"])
def test_new_files_replace_old_ones_and_others_stay(tmp_path, monkeypatch, system):
    """With the system's exchange, and without it."""
    if system == "two renames":
        monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: object())
    folder = tmp_path / "a"
    (folder / "sub").mkdir(parents=True)
    for name in ("config", "weights-1", "note", "sub/deep"):
        (folder / name).write_text("old")
    with replaced_folder(folder, stale=lambda name: name.startswith("weights")) as staging:
        (staging / "config").write_text("new")
        (staging / "weights-2").write_text("new")
        assert contents(folder)["config"] == "old"
    assert contents(folder) == {"config": "new", "weights-2": "new", "note": "old", "sub/deep": "old"}
    assert os.listdir(tmp_path) == ["a"]


def test_a_new_folder_appears_when_it_is_whole(tmp_path):
    """Parents are made; permissions are the usual ones."""
    folder = tmp_path / "x" / "y"
    with replaced_folder(folder, nothing_is_stale) as staging:
        (staging / "f").write_text("1")
        assert not folder.exists()
    assert contents(folder) == {"f": "1"}
    usual = tmp_path / "usual"
    usual.mkdir()
    assert folder.stat().st_mode == usual.stat().st_mode


def test_an_error_leaves_the_old_folder(tmp_path):
    """And nothing beside it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_text("old")

    def crash():
        with replaced_folder(tmp_path / "a", nothing_is_stale) as staging:
            (staging / "f").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crash()
    assert contents(tmp_path) == {"a/f": "old"}
    assert os.listdir(tmp_path) == ["a"]
