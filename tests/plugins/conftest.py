"""What the tests of plugins share."""

from __future__ import annotations

import pytest
from fake_plugins import isolated


@pytest.fixture
def site(tmp_path):
    """An empty folder: the only place where this process finds plugins."""
    with isolated(tmp_path) as folder:
        yield folder
