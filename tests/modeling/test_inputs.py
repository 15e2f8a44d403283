"""Inputs of a call: each goes to the one encoder that declares its name, and what does not fit together is refused."""

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cornstarch_core import ModalEncoderModule, MultimodalModel
from cornstarch_core.errors import InputError
from cornstarch_core.modeling.inputs import split_inputs, validate_inputs


def compose(**encoders) -> MultimodalModel:
    """A model with these modules as encoders."""
    return MultimodalModel(
        encoders={key: ModalEncoderModule(module) for key, module in encoders.items()}, language_model=tiny.llama()
    ).eval()


def located(mllm):
    """Two samples with an image each, with positions in place of the token id."""
    batch = tiny.prompt(1, 1)
    positions = (batch["input_ids"].flatten() == tiny.IMAGE_TOKEN).nonzero().squeeze(1)
    return batch["input_ids"], {"vision": {"pixel_values": tiny.pixels(2), "positions": positions}}


# --- to whom an input belongs -----------------------------------------------------------------------------------------


def test_flat_and_namespaced_inputs_are_the_same(mllm):
    """``pixel_values=`` goes to the one encoder that declares it."""
    batch, pixels = tiny.prompt(1), tiny.pixels(1)
    flat = mllm(**batch, pixel_values=pixels)
    nested = mllm(**batch, encoder_inputs={"vision": {"pixel_values": pixels}})
    assert torch.equal(flat.logits, nested.logits)


def test_a_name_that_nothing_takes_is_refused(mllm):
    """A misspelt argument is never dropped."""
    with pytest.raises(TypeError, match="nothing takes pixel_vlaues: neither LlamaForCausalLM nor .*pixel_values"):
        mllm(**tiny.prompt(0), pixel_vlaues=tiny.pixels(1))
    with pytest.raises(ValueError, match="pixel_vlaues"):
        mllm.generate(input_ids=tiny.prompt(0)["input_ids"], pixel_vlaues=tiny.pixels(1), max_new_tokens=1)


def test_two_encoders_that_declare_one_name_need_namespaces():
    """A flat name is refused with the way out; ``encoder_inputs=`` works, and no input vanishes."""
    model = compose(left=tiny.clip(0), right=tiny.clip(7))
    model.set_modality_token_ids({"left": 100, "right": 101})
    left, right = tiny.prompt(1, token_id=100), tiny.prompt(1, token_id=101)
    ids = torch.cat([left["input_ids"], right["input_ids"]], dim=1)
    with pytest.raises(TypeError, match=r"any of left, right; pass encoder_inputs=\{'left': \{'pixel_values'"):
        model(input_ids=ids, pixel_values=tiny.pixels(1))
    a, b = tiny.pixels(1, 1), tiny.pixels(1, 2)

    def run(one, other):
        return model(input_ids=ids, encoder_inputs={"left": {"pixel_values": one}, "right": {"pixel_values": other}})

    base = run(a, b).logits
    assert not torch.equal(run(a, a).logits, base)
    assert not torch.equal(run(b, b).logits, base)


def test_the_attention_mask_is_the_language_models(mllm):
    """An encoder that declares an input of that name gets its own through ``encoder_inputs=``, also in ``generate``."""
    seen = []

    def ear(signal, attention_mask=None):
        seen.append(attention_mask)
        return signal

    toy = tiny.ToyEncoder()
    toy.forward = ear
    encoder = ModalEncoderModule(toy, hidden_size=5, input_names=["signal", "attention_mask"])
    model = MultimodalModel(encoders={"ear": encoder}, language_model=tiny.llama()).eval()
    model.set_modality_token_ids({"ear": tiny.IMAGE_TOKEN})
    batch = {**tiny.prompt(1, tokens=4), "signal": torch.randn(1, 4, 5)}
    batch.pop("labels")
    model(**batch)
    model.generate(**batch, max_new_tokens=1)
    assert seen == [None, None]
    model(**batch, encoder_inputs={"ear": {"attention_mask": torch.ones(1, 4)}})
    assert seen[-1].shape == (1, 4)


def test_encoder_inputs_that_fit_no_encoder_are_refused(mllm):
    """The error lists the encoders that there are, an input that is given twice, or the form that is expected."""
    with pytest.raises(InputError, match="inputs for audio.*it has vision"):
        mllm(**tiny.prompt(0), encoder_inputs={"audio": {"input_features": torch.zeros(1)}})
    with pytest.raises(TypeError, match="given twice"):
        mllm(**tiny.prompt(1), pixel_values=tiny.pixels(1), encoder_inputs={"vision": {"pixel_values": tiny.pixels(1)}})
    with pytest.raises(TypeError, match="encoder_inputs= must be a dictionary of dictionaries"):
        mllm(**tiny.prompt(0), encoder_inputs={"vision": tiny.pixels(1)})


NAMES = {"left": ("picture", "sizes", "attention_mask"), "right": ("sound", "sizes")}
ENCODERS = {
    key: ModalEncoderModule(tiny.ToyEncoder(), hidden_size=32, input_names=names) for key, names in NAMES.items()
}
values = st.one_of(st.none(), st.integers())
namespaced = st.fixed_dictionaries(
    {}, optional={key: st.dictionaries(st.sampled_from(names), values) for key, names in NAMES.items()}
)


@given(st.dictionaries(st.sampled_from(["picture", "sound", "attention_mask", "labels", "other"]), values), namespaced)
@settings(deadline=None)
def test_every_input_that_is_given_arrives_exactly_once(flat, nested):
    """Each value is its encoder's or the language model's; ``None`` is left out, and nothing given is changed."""
    before = dict(flat), {key: dict(inputs) for key, inputs in nested.items()}
    owners = {"picture": "left", "sound": "right"}
    expected = {key: {name: one for name, one in nested.get(key, {}).items() if one is not None} for key in NAMES}
    given_flat = {name: one for name, one in flat.items() if one is not None}
    twice = [name for name in given_flat if name in owners and name in expected[owners[name]]]
    if twice:
        with pytest.raises(TypeError, match=f"{twice[0]} is given twice: flat, and in encoder_inputs"):
            split_inputs(ENCODERS, nested, flat)
    else:
        for name in given_flat.keys() & owners.keys():
            expected[owners[name]][name] = given_flat[name]
        rest = {name: one for name, one in given_flat.items() if name not in owners}
        assert split_inputs(ENCODERS, nested, flat) == (expected, rest)
    assert (flat, nested) == before


# --- whether they fit together ----------------------------------------------------------------------------------------


def test_text_that_is_missing_or_of_another_shape_is_named(mllm):
    """There must be ids or embeddings of a batch, and one label for each token."""
    with pytest.raises(InputError, match="input_ids or inputs_embeds is missing"):
        compose(vision=tiny.clip())()
    with pytest.raises(InputError, match=r"expected a tensor of shape \(batch, tokens\), got \(6,\)"):
        mllm(input_ids=tiny.prompt(0)["input_ids"][0])
    with pytest.raises(InputError, match=r"expected a tensor of shape \(batch, tokens, width\), got \(6, 64\)"):
        mllm(inputs_embeds=torch.zeros(6, 64))
    batch = tiny.prompt(0)
    batch["labels"] = batch["labels"][:, :-1]
    with pytest.raises(InputError, match=r"labels are \(1, 5\), the batch is \(1, 6\)"):
        mllm(**batch)


def test_without_token_id_or_positions_the_error_says_how_to_tell():
    """The model can't guess what the placeholder is."""
    with pytest.raises(InputError, match=r"vision: .*set_modality_token_ids\(\{\"vision\": token_id\}\)"):
        compose(vision=tiny.clip())(**tiny.prompt(1), pixel_values=tiny.pixels(1))


def test_positions_stand_in_for_the_token_id(mllm):
    """With positions no placeholder is looked for, so that embeddings are enough."""
    batch, pixels = tiny.prompt(1, 1), tiny.pixels(2)
    expected = mllm(**batch, pixel_values=pixels).logits
    positions = (batch["input_ids"].flatten() == tiny.IMAGE_TOKEN).nonzero().squeeze(1)
    inputs = {"vision": {"pixel_values": pixels, "positions": positions}}
    embeds = mllm.get_input_embeddings()(batch.pop("input_ids").clamp(max=99))
    assert torch.equal(mllm(inputs_embeds=embeds, **batch, encoder_inputs=inputs).logits, expected)


@pytest.mark.parametrize(
    "positions", [torch.zeros(2, 2).long(), torch.zeros(3), torch.zeros(3).bool(), [1, 2]], ids=str
)
def test_positions_of_another_kind_are_refused(mllm, positions):
    """Shape and dtype are checked without looking at values."""
    with pytest.raises(InputError, match=r"vision: positions must be a tensor \(P,\) of int64"):
        mllm(**tiny.prompt(1), encoder_inputs={"vision": {"pixel_values": tiny.pixels(1), "positions": positions}})


@pytest.mark.parametrize("index", [-1, -997, 10**6])
def test_positions_outside_of_the_batch_are_refused(mllm, index):
    """A position before the beginning is no position from the end."""
    ids, inputs = located(mllm)
    inputs["vision"]["positions"][0] = index
    with pytest.raises(InputError, match=r"positions point outside the \(2, 60\) batch"):
        mllm(ids, encoder_inputs=inputs)


@pytest.mark.parametrize(
    ("change", "where", "found"),
    [
        (lambda ids: ids[:, 1:], "sample 0, token 19", 58),
        (lambda ids: torch.cat([ids, ids[:, :1]], dim=1), "sample 1, token 2", 22),
    ],
    ids=["cut", "padded"],
)
def test_a_batch_that_was_changed_after_processing_is_refused(mllm, change, where, found):
    """Features would land beside the placeholders; on the host the error says where, and which token is there."""
    batch = tiny.prompt(1, 1)
    positions = (batch["input_ids"].flatten() == tiny.IMAGE_TOKEN).nonzero().squeeze(1)
    inputs = {"vision": {"pixel_values": tiny.pixels(2), "positions": positions}}
    with pytest.raises(InputError, match=f"vision: {where}: .* instead of the placeholder 100 there is token {found}"):
        mllm(change(batch["input_ids"]), encoder_inputs=inputs)


def test_one_other_id_at_all_placeholders_is_fine(mllm):
    """Another processor may have another placeholder, or one was put there because its id lies outside the table."""
    ids, inputs = located(mllm)
    expected = mllm(ids, encoder_inputs=inputs).logits
    for other in (0, 7, 999):
        changed = ids.masked_fill(ids == tiny.IMAGE_TOKEN, other)
        if other < tiny.VOCABULARY:
            assert torch.equal(mllm(changed, encoder_inputs=inputs).logits, expected)
        else:  # the language model's own table has no such row; the check is not what stops it
            with pytest.raises(IndexError):
                mllm(changed, encoder_inputs=inputs)


@given(st.lists(st.sampled_from([3, 8, 9]), min_size=4, max_size=4), st.sets(st.integers(0, 3), min_size=1))
@settings(deadline=None)
def test_features_are_placed_only_where_all_placeholders_are_alike(row, places):
    """Positions are taken if each holds the placeholder 9; or if no 9 is anywhere, and all hold one other id."""
    ids, positions = torch.tensor([row]), torch.tensor(sorted(places))
    media = {"left": {"picture": torch.zeros(1)}, "right": {}}

    def check():
        return validate_inputs(ENCODERS, media, {"left": positions}, ids, None, None, {"left": 9})

    found = {row[place] for place in places}
    if found == {9} or (9 not in row and len(found) == 1):
        assert {key: one.tolist() for key, one in check().items()} == {"left": positions.tolist()}
    else:
        with pytest.raises(
            InputError, match=r"left: sample 0, token \d: .* of the placeholder 9 there is token [38]\."
        ):
            check()
