"""Composed: placeholders, chat, errors, saving, and ready-made embeddings in place of an encoder."""

import numpy as np
import pytest
import torch
from cornstarch_timeseries.conv import SeriesConvEncoder

from cornstarch_core import ModalEncoderModule, MultimodalCollator, MultimodalModel, MultimodalProcessor
from cornstarch_core.errors import MediaError


def wave(steps=32, channels=2, seed=0):
    """A random walk, ``(steps, channels)``."""
    return np.random.default_rng(seed).normal(size=(steps, channels)).cumsum(0)


def message(item, text=" is it rising ?"):
    """What a user asks about a series."""
    return {"role": "user", "content": [{"type": "series", "series": item}, {"type": "text", "text": text}]}


def test_as_many_placeholders_as_features(model, processor_of):
    """Several series in a sample, none in another: the model takes what the processor makes."""
    batch = processor_of(model)(
        text=["<series> is <series> ?", "rising ?", "<series> yes"],
        series=[[wave(seed=1), wave(seed=2)], [], [wave(seed=3)]],
    )
    assert model(**batch).logits.isfinite().all()
    features = model.series_encoder(**batch["encoder_inputs"]["series"])[0]
    assert sum(len(one) for one in features) == len(batch["encoder_inputs"]["series"]["positions"])


def test_the_features_of_a_sample_do_not_depend_on_the_others(model, processor_of):
    """The logits of a padded row are those of the sample alone."""
    processor = processor_of(model)
    texts, series = ["<series> is it rising ?", "<series> ?"], [wave(seed=1), wave(seed=2)]
    together = processor(text=texts, series=series)
    with torch.no_grad():
        logits = model(**together).logits
        for row, mask in enumerate(together["attention_mask"].bool()):
            alone = model(**processor(text=texts[row], series=series[row])).logits[0]
            torch.testing.assert_close(logits[row, mask], alone, atol=1e-5, rtol=1e-4)


def test_chat(model, processor_of):
    """Typed content is the same as a placeholder in the text, and trains; the answer is what is learned."""
    processor = processor_of(model)
    written = processor(text="user : <series> is it rising ? <end> ", series=wave())
    chat = processor.apply_chat_template([message(wave())], tokenize=True, return_dict=True)
    assert chat["input_ids"].tolist() == written["input_ids"].tolist()
    answered = [message(wave()), {"role": "assistant", "content": "yes"}]
    batch = MultimodalCollator(processor)([answered, answered])
    assert (batch["labels"] != -100).sum(-1).tolist() == [2, 2]  # the word, and the end of the turn
    model(**batch).loss.backward()
    assert all(weight.grad.any() for weight in model.series_encoder.projector.parameters())


def test_nested_lists_are_channels_in_a_chat(model, processor_of):
    """There is one item in a part, so that a list of lists is not mistaken for several."""
    processor = processor_of(model)
    one, other = (
        processor.apply_chat_template([message(item)], tokenize=True, return_dict=True)
        for item in (wave(), wave().tolist())
    )
    assert one["input_ids"].tolist() == other["input_ids"].tolist()


def test_generation(model, processor_of):
    """Left-padded in a batch as alone."""
    processor = processor_of(model)
    items = [wave(seed=1), wave(seed=2)]
    texts = ["<series> is it rising ?", "<series> ?"]
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    together = model.generate(**processor(text=texts, series=items, padding_side="left"), **options)
    for row, (text, item) in enumerate(zip(texts, items, strict=True)):
        alone = model.generate(**processor(text=text, series=item), **options)
        assert together[row, -5:].tolist() == alone[0, -5:].tolist()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.full((32, 2), np.nan), "64 of 64 values are NaN"),
        (np.zeros((0, 2)), "empty"),
        (np.zeros(32), r"of shape \(32, 1\), so 1 channels; this encoder takes 2"),
        ("load.csv", "a str is no series"),
    ],
)
def test_a_broken_series_is_named_by_sample_and_item(model, processor_of, item, message):
    """Found by the check of an item or by the processor, the place is the same, and the modality stands there once."""
    with pytest.raises(MediaError, match=f"^series: sample 1, item 1: (?!series).*{message}"):
        processor_of(model)(text=["<series>", "<series> <series>"], series=[[wave()], [wave(), item]])


def test_a_series_of_the_wrong_length_is_named(model, processor_of):
    """PatchTST takes one length, the other encoder takes any up to a limit."""
    processor = processor_of(model)
    if isinstance(model.series_encoder.module, SeriesConvEncoder):
        processor.processors["series"].max_steps = 20
        expected = "sample 0, item 0: 32 values over time, too long; this encoder takes at most 20"
        with pytest.raises(MediaError, match=expected):
            processor(text="<series>", series=wave())
        return
    with pytest.raises(MediaError, match="sample 0, item 1: 31 values over time, too short; this encoder takes 32"):
        processor(text="<series> <series>", series=[wave(), wave(31)])


def test_saved_and_loaded(model, processor_of, tmp_path):
    """Both come back equal, the processor without the model; the plugin is in the record."""
    processor = processor_of(model)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = MultimodalModel.from_pretrained(tmp_path).eval()
    batch = MultimodalProcessor.from_pretrained(tmp_path)(text="<series> is it rising ?", series=wave())
    assert batch["input_ids"].tolist() == processor(text="<series> is it rising ?", series=wave())["input_ids"].tolist()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert [entry["distribution"] for entry in model.config.plugins] == ["cornstarch-timeseries"]


def test_ready_made_embeddings(compose, processor_of, tmp_path):
    """Series that were encoded elsewhere: as many tokens as each has, in text and chat, and saved."""
    model = compose(ModalEncoderModule(None, hidden_size=24))
    processor = processor_of(model)
    torch.manual_seed(2)
    items = [torch.randn(7, 24), torch.randn(3, 24)]
    batch = processor(text=["<series> rising ?", "<series> ?"], series=items)
    assert batch["attention_mask"].sum(-1).tolist() == [7 + 2, 3 + 1]
    chat = processor.apply_chat_template([message(items[0])], tokenize=True, return_dict=True)
    assert len(chat["encoder_inputs"]["series"]["positions"]) == 7
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(MultimodalModel.from_pretrained(tmp_path)(**batch).logits, model(**batch).logits)
    with pytest.raises(MediaError, match=r"sample 0, item 0: .*\(tokens, 24\)"):
        processor(text="<series>", series=torch.randn(7, 23))
