"""Names of new plugins: those that can't work are refused."""

from __future__ import annotations

import pytest

from cornstarch_core.cli import main
from cornstarch_core.model import _RESERVED_CONFIGS, MultimodalModel
from cornstarch_core.processing.encoding import Options
from cornstarch_core.scaffold.names import TAKEN


@pytest.mark.parametrize(
    ("name", "modality", "message"),
    [
        ("cornstarch-", "eeg", "NAME is 'cornstarch-'; a distribution's name has ASCII letters"),
        ("corn starch", "eeg", "such as cornstarch-eeg"),
        ("", "eeg", "NAME is ''"),
        ("3d", "eeg", "would be '3d', which Python can't import; choose another, such as cornstarch-3d"),
        ("class", "eeg", "would be 'class', which Python can't import"),
        ("Cornstarch.Core", "eeg", "would be 'cornstarch_core', which exists already"),
        ("json", "eeg", "would be 'json', which exists already"),
        ("a-b", "point-cloud", "--modality is 'point-cloud'; it has to be a Python identifier"),
        ("a-b", "_eeg", "--modality is '_eeg'"),
        ("a-b", "eeg_", "--modality is 'eeg_'"),
        ("a-b", "", "--modality is ''"),
        ("a-b", "lambda", "and not a keyword"),
        ("a-b", "language_model", "--modality is 'language_model', which means something else"),
        ("a-b", "eeg_kwargs", "which means something else"),
    ],
)
def test_names_that_cannot_work_end_in_exit_code_2(name, modality, message, tmp_path, monkeypatch, capsys):
    """The message says what is wrong and suggests another name; nothing is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["plugins", "new", name, "--modality", modality])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: cornstarch plugins new")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_names_that_a_model_or_a_processor_uses_are_taken():
    """The list has all configs, methods and arguments that a modality's key would collide with."""
    configs = {name.removesuffix("_config") for name in _RESERVED_CONFIGS}
    methods = {name.removesuffix("_encoder").lstrip("_") for name in dir(MultimodalModel) if name.endswith("_encoder")}
    assert configs | methods | set(Options.__dataclass_fields__) <= TAKEN
