"""The checks of training: each plugin here has one mistake, and fails the check for it alone."""

from __future__ import annotations

import pytest
from testing.toys import assert_one_check_fails, toys_that_fail

from cornstarch_core.testing.training_checks import TrainingChecks


@pytest.mark.parametrize("name", toys_that_fail(TrainingChecks))
def test_a_broken_plugin_fails_one_check(name, only):
    """The message names what to change."""
    only(name)
    assert_one_check_fails(name)
