"""Media as users give them are sorted by sample, and compared with the placeholders."""

from __future__ import annotations

import pytest
import words

from cornstarch_core.errors import PlaceholderMismatchError


@pytest.fixture(scope="module")
def processor():
    """For one CLIP encoder; tests must not change it."""
    return words.processor()


def test_media_can_be_nested_flat_or_single(processor):
    """A list of items a sample and a flat list that the placeholders divide give the same batch; ``None`` means no item."""
    a, b, c = (words.image(seed) for seed in range(3))
    texts = ["<vision> one", "none", "<vision><vision> two"]
    nested = processor(text=texts, vision=[[a], [], [b, c]])
    assert words.same(nested, processor(text=texts, images=[a, b, c]))
    assert words.same(nested, processor(text=texts, image=[a, None, (b, c)]))
    assert nested["encoder_inputs"]["vision"]["pixel_values"].shape[0] == 3
    assert words.same(processor(text="<vision>", vision=a), processor(text=["<vision>"], images=[[a]]))


@pytest.mark.parametrize(
    ("texts", "given", "message"),
    [
        (["<vision>", "<vision><vision>"], [[0], [1]], "vision: sample 1: expected 2 items, .*; got 1"),
        (["<vision>", "no"], [[0], [1]], "vision: sample 1: expected 0 items, .*; got 1"),
        (["<vision>", "<vision>"], [0], r"vision: sample 1: expected 2 items, .*; got 1.*too few"),
        (["<vision>"], [0, 1], "vision: sample 0: expected 1 item, .*; got 2.*1 item would be left over"),
        (["a", "<vision>"], None, "vision: sample 1: the text has 1 times the placeholder .* and no items are given"),
        (["<vision>"], [[0], [1]], "vision: media are given for 2 samples, there are 1 texts"),
    ],
)
def test_placeholders_and_items_must_agree(processor, texts, given, message):
    """The error names modality, sample, the expected and the given number, and what to do."""
    media = given and [[words.image(i) for i in one] if isinstance(one, list) else words.image(one) for one in given]
    with pytest.raises(PlaceholderMismatchError, match=message) as caught:
        processor(text=texts, vision=media)
    assert str(caught.value).endswith(".")
