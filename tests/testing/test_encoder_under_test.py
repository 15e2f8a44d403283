"""What an author gives to the kit."""

from __future__ import annotations

import pytest

from cornstarch_core.testing import EncoderConformance


def test_methods_to_give_say_so():
    """If an author forgets one, the error says what it has to return."""
    subject = type("Subject", (EncoderConformance,), {"encoder": "clip"})()
    with pytest.raises(NotImplementedError, match="give make_module.*a small encoder"):
        subject.test_its_spec_describes_the_module()
    with pytest.raises(NotImplementedError, match="give make_items.*a list of random items"):
        subject.items(0)
    empty = type("Empty", (EncoderConformance,), {"encoder": "clip", "make_items": lambda self, rng: []})()
    with pytest.raises(pytest.fail.Exception, match="20 calls of make_items gave 0 items.\n  fix: Let it return one"):
        empty.items(0)
