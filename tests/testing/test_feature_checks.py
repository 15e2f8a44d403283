"""The checks of features: each plugin here has one mistake, and fails the check for it alone."""

from __future__ import annotations

import re

import pytest
from testing.toys import assert_one_check_fails, checks_of, toys_that_fail

from cornstarch_core.testing.composed import Composed
from cornstarch_core.testing.feature_checks import FeatureChecks


@pytest.mark.parametrize("name", toys_that_fail(FeatureChecks))
def test_a_broken_plugin_fails_one_check(name, only):
    """The message names what to change."""
    only(name)
    assert_one_check_fails(name)


def test_items_that_cannot_be_run_fail_with_advice(only, monkeypatch):
    """If a module accepts only some batches, the message says what was raised, where, and what to do."""
    only("sound")
    _, encoder = checks_of("sound")
    monkeypatch.setattr(Composed, "features", lambda composed, inputs: inputs["series"][99])
    with pytest.raises(pytest.fail.Exception) as failure:
        encoder().test_features_do_not_depend_on_the_rest_of_the_batch()
    assert re.search(
        r"ToyEncoder can't be run on \d+ items of make_items: IndexError: .*\n  fix: .*also of a single one.",
        str(failure.value),
    )
