"""The arguments of ``from_pretrained`` that say where to load from."""

from __future__ import annotations

import tiny
from transformers import AutoConfig

from cornstarch_core._hf.hub import hub_options


def test_only_arguments_about_the_place_are_taken():
    """Settings of the model are left out, ``None`` stays, and the given dictionary is not changed."""
    given = {"revision": "main", "token": None, "dtype": "bfloat16", "device_map": "auto", "cache_dir": "/tmp"}
    assert hub_options(given) == {"revision": "main", "token": None, "cache_dir": "/tmp"}
    assert len(given) == 5
    assert hub_options({}) == {}


def test_transformers_takes_every_one_of_them(tmp_path):
    """A config is read with all of them at once, and from the subfolder that they name."""
    tiny.clip().config.save_pretrained(tmp_path / "tower")
    place = {"cache_dir": None, "force_download": False, "local_files_only": True, "proxies": None, "token": None}
    given = {**place, "revision": "main", "subfolder": "tower", "output_hidden_states": True}
    assert hub_options(given) == {**place, "revision": "main", "subfolder": "tower"}
    config = AutoConfig.from_pretrained(tmp_path, **hub_options(given))
    assert config.model_type == "clip_vision_model"
    assert not config.output_hidden_states
