"""A folder is replaced as a whole: other files stay, and an error leaves the old folder."""

from __future__ import annotations

import ctypes
import os

import pytest

from cornstarch_core.saving.atomic import is_weight_file, replaced_folder


def contents(folder) -> dict[str, str]:
    """The texts of all files by name."""
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def nothing_is_stale(name: str) -> bool:
    """Carry over every other file."""
    return False


@pytest.mark.parametrize("system", ["exchange", "two renames"])
def test_new_files_replace_old_ones_and_others_stay(tmp_path, monkeypatch, system):
    """This holds with the system's exchange of folders and with two renames."""
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
    """It does not exist before; its parents are made, and its permissions are those of any new folder."""
    folder = tmp_path / "x" / "y"
    with replaced_folder(folder, nothing_is_stale) as staging:
        (staging / "f").write_text("1")
        assert not folder.exists()
    assert contents(folder) == {"f": "1"}
    usual = tmp_path / "usual"
    usual.mkdir()
    assert folder.stat().st_mode == usual.stat().st_mode


def test_an_error_leaves_the_old_folder(tmp_path):
    """The old folder is unchanged, and no other folder lies beside it."""
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


def replace(folder) -> None:
    """Write a new ``config`` and ``weights-2`` in place of what starts with ``weights``."""
    with replaced_folder(folder, stale=lambda name: name.startswith("weights")) as staging:
        (staging / "config").write_text("new")
        (staging / "weights-2").write_text("new")


@pytest.fixture
def old(tmp_path):
    """A folder with a config, weights and a note."""
    folder = tmp_path / "old"
    folder.mkdir()
    for name in ("config", "weights-1", "note"):
        (folder / name).write_text("old")
    return folder


NEW = {"config": "new", "weights-2": "new", "note": "old"}


def test_the_working_directory_stays_the_working_directory(old, monkeypatch):
    """Files are replaced one by one if the folder is the working directory or holds it."""
    inside = old / "inside"
    inside.mkdir()
    for here, folder in ((old, "."), (inside, "..")):
        monkeypatch.chdir(here)
        replace(folder)
        assert os.path.samefile(os.getcwd(), here)
        assert contents(old) == NEW


def test_a_link_is_followed(old, tmp_path):
    """The link stays a link, and its target is replaced."""
    link = tmp_path / "link"
    link.symlink_to(old)
    replace(link)
    assert link.is_symlink()
    assert contents(old) == NEW
    assert sorted(os.listdir(tmp_path)) == ["link", "old"]


def test_where_folders_can_not_be_exchanged_files_are_replaced(old, monkeypatch):
    """In a mount point, other files stay and stale files go, as with an exchange."""
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(old))
    replace(old)
    assert contents(old) == NEW
    monkeypatch.undo()


def test_a_failing_exchange_falls_back_to_files(old, monkeypatch):
    """An overlay file system refuses to rename a folder; then the files in it are replaced."""
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: object())
    rename = os.replace

    def refuse(source, target):
        if os.path.isdir(source):
            raise OSError("Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    replace(old)
    assert contents(old) == NEW


@pytest.mark.parametrize("in_place", [True, False])
def test_folders_inside_are_replaced_too_and_links_stay(old, monkeypatch, in_place):
    """A folder that is written replaces one of that name, a stale folder is removed, and a link is carried over."""
    (old / "templates").mkdir()
    (old / "templates" / "a").write_text("old")
    (old / "weights-parts").mkdir()
    (old / "link").symlink_to("note")
    monkeypatch.setattr(os.path, "ismount", lambda path: in_place)
    with replaced_folder(old, stale=lambda name: name.startswith("weights")) as staging:
        (staging / "templates").mkdir()
        (staging / "templates" / "b").write_text("new")
    assert contents(old) == {"config": "old", "link": "old", "note": "old", "templates/b": "new"}
    assert (old / "link").is_symlink()
    assert sorted(os.listdir(old)) == ["config", "link", "note", "templates"]


def test_permissions_of_a_replaced_folder_stay(old):
    """A private folder stays private."""
    old.chmod(0o700)
    replace(old)
    assert old.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("name", "variant", "expected"),
    [
        ("model.safetensors", None, True),
        ("model-00001-of-00002.safetensors", None, True),
        ("model.safetensors.index.json", None, True),
        ("model.fp16.safetensors", None, False),
        ("model.fp16.safetensors", "fp16", True),
        ("model.fp16-00001-of-00002.safetensors", "fp16", True),
        ("model-00001-of-00002.fp16.safetensors", "fp16", True),
        ("model.safetensors.index.fp16.json", "fp16", True),
        ("model.safetensors", "fp16", False),
        ("my-model.safetensors", None, False),
        ("config.json", None, False),
    ],
)
def test_weight_files_of_a_variant(name, variant, expected):
    """Saving a variant replaces only weight files of that variant."""
    assert is_weight_file(name, variant) == expected
