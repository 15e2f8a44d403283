"""The processor: placeholders, models and configs, conversations, and batches for the model. All real and tiny."""

from __future__ import annotations

import pytest
import torch
import words
from transformers import CLIPImageProcessor, LlavaProcessor

from cornstarch_core import ModalCallbacks, MultimodalProcessor
from cornstarch_core.errors import CompositionError, InputError

ITEM = 17  # features of one image: CLS and 16 patches


@pytest.fixture(scope="module")
def processor():
    """For one CLIP encoder; tests must not change it."""
    return words.processor()


# --- placeholders -----------------------------------------------------------------------------------------------------


def test_a_placeholder_is_expanded_to_its_items_token_count(processor):
    """The ids are exactly the text's own with the placeholder repeated; the positions are those of the repetitions."""
    before, after = (processor.tokenizer(text)["input_ids"] for text in ("a ", " cat"))
    batch = processor(text="a <vision> cat", vision=words.image())
    token_id = processor.token_ids["vision"]
    assert batch["input_ids"].tolist() == [[*before, *[token_id] * ITEM, *after]]
    assert batch["attention_mask"].tolist() == [[1] * (len(before) + ITEM + len(after))]
    vision = batch["encoder_inputs"]["vision"]
    assert vision["positions"].tolist() == list(range(len(before), len(before) + ITEM))
    assert vision["positions"].dtype == batch["input_ids"].dtype == torch.int64
    assert vision["pixel_values"].shape == (1, 3, 32, 32)


def test_the_default_placeholder_is_the_key():
    """``<vision>`` becomes a special token, its id is set in the model's config, and nothing is resized."""
    tokenizer, model = words.tokenizer(), words.model()
    known = len(tokenizer)
    processor = MultimodalProcessor(tokenizer=tokenizer, model=model)
    assert processor.tokens == {"vision": "<vision>"}
    assert processor.token_ids == model.config.modality_token_ids == {"vision": known}
    assert "<vision>" in tokenizer.all_special_tokens
    assert model.get_input_embeddings().num_embeddings == 400


def test_adding_placeholders_keeps_the_other_special_tokens():
    """The tokenizer's own extra special tokens stay special."""
    tokenizer = words.tokenizer()
    words.processor(tokenizer=tokenizer)
    assert {"<|im_start|>", "<|im_end|>", "<vision>"} <= set(tokenizer.all_special_tokens)


def test_the_models_own_placeholder_is_found_by_its_id():
    """If the model's config has an id that the tokenizer knows, its token is the placeholder."""
    tokenizer, model = words.tokenizer(extra_special_tokens=["<img>"]), words.model()
    model.set_modality_token_ids({"vision": tokenizer.convert_tokens_to_ids("<img>")})
    assert MultimodalProcessor(tokenizer=tokenizer, model=model).tokens == {"vision": "<img>"}


def test_an_id_that_the_tokenizer_lacks_is_replaced():
    """Such an id has no token, so the default placeholder is used."""
    model = words.model()
    model.set_modality_token_ids({"vision": 99_999})
    processor = words.processor(model=model)
    assert processor.tokens == {"vision": "<vision>"}
    assert model.config.modality_token_ids == processor.token_ids


def test_the_tokens_argument_wins_over_the_models_id():
    """The given placeholder is used, and the model's config gets its id."""
    tokenizer, model = words.tokenizer(), words.model()
    model.set_modality_token_ids({"vision": 5})
    processor = MultimodalProcessor(tokenizer=tokenizer, model=model, tokens={"vision": "<image>"})
    assert processor.tokens == {"vision": "<image>"}
    assert model.config.modality_token_ids == {"vision": tokenizer.convert_tokens_to_ids("<image>")}


@pytest.mark.parametrize("tokens", [{"left": "<x>", "right": "<x>"}, {"left": "<pad>"}, {"right": "</s>"}])
def test_a_placeholder_belongs_to_one_modality_alone(tokens):
    """Two modalities cannot share it, and it cannot be the padding token or the end of a text."""
    with pytest.raises(CompositionError, match="already"):
        words.processor(keys=("left", "right"), tokens=tokens)


def test_tokens_and_processors_must_be_for_modalities_of_the_model():
    """An unknown key is an error that lists the known ones."""
    with pytest.raises(ValueError, match="processors= for audio, but this model has vision"):
        words.processor(processors={"audio": object()})


# --- the model --------------------------------------------------------------------------------------------------------


def test_a_config_replaces_the_model():
    """Counting needs no weights, so ``model=mllm.config`` gives the same processor. Other values are refused."""
    model = words.model("llava")
    one, other = (words.processor(model=given) for given in (model, model.config))
    given = {"text": "<vision>", "vision": words.image()}
    assert words.same(one(**given), other(**given))
    with pytest.raises(TypeError, match=r"model= must be a MultimodalModel.*from_pretrained"):
        MultimodalProcessor(tokenizer=words.tokenizer())
    with pytest.raises(TypeError, match="tokenizer= is missing"):
        MultimodalProcessor(model=model)


def test_a_config_with_custom_callbacks_does_not_replace_the_model():
    """Custom callbacks may change the counts, so the error asks for the model itself."""
    model = words.model(ModalCallbacks(postprocess_module=lambda inputs, output: output))
    with pytest.raises(CompositionError, match="vision: .*give model= the model itself"):
        words.processor(model=model.config)


# --- conversations ----------------------------------------------------------------------------------------------------


def user(*parts):
    """A user's message of typed parts, or of one string."""
    return {"role": "user", "content": parts[0] if parts and isinstance(parts[0], str) else list(parts)}


def assistant(words_):
    """What the assistant says."""
    return {"role": "assistant", "content": words_}


@pytest.fixture(scope="module")
def chat_processor():
    """With the placeholder ``<image>`` and a template for strings; tests must not change it."""
    return words.processor(tokens={"vision": "<image>"}, chat_template=words.CHATML)


def test_a_conversation_becomes_a_text_ids_or_a_batch(chat_processor):
    """One conversation gives a text, several give a list; ``tokenize`` gives ids."""
    said = [user("Hi")]
    assert chat_processor.apply_chat_template(said) == "<|im_start|>user\nHi<|im_end|>\n"
    assert chat_processor.apply_chat_template([said, said]) == ["<|im_start|>user\nHi<|im_end|>\n"] * 2
    ids = chat_processor.apply_chat_template(said, tokenize=True)
    assert torch.equal(ids, chat_processor(text=chat_processor.apply_chat_template(said))["input_ids"])


def test_a_generation_prompt_is_padded_on_the_left(chat_processor):
    """Unless ``padding_side`` is given. Without a generation prompt, the tokenizer's side is used."""
    talks = [[user("one")], [user("none of it, but longer")]]
    options = {"tokenize": True, "return_dict": True}
    prompt = chat_processor.apply_chat_template(talks, add_generation_prompt=True, **options)
    assert prompt["attention_mask"][0].tolist() == sorted(prompt["attention_mask"][0].tolist())
    for given in ({"processor_kwargs": {"padding_side": "right"}}, {"padding_side": "right"}):
        right = chat_processor.apply_chat_template(talks, add_generation_prompt=True, **options, **given)
        assert right["attention_mask"][0, -1] == 0
    assert chat_processor.apply_chat_template(talks, **options)["attention_mask"][0, -1] == 0


def test_options_of_a_call_and_variables_of_a_template_are_separated(chat_processor):
    """Options can be keywords or ``processor_kwargs``; other keywords are variables of the template."""
    said = [[user("Hi")], [user("a cat and a dog")]]
    one = chat_processor.apply_chat_template(said, tokenize=True, padding_side="left")
    other = chat_processor.apply_chat_template(said, tokenize=True, processor_kwargs={"padding_side": "left"})
    assert torch.equal(one, other)
    assert one[0, 0] == chat_processor.tokenizer.pad_token_id
    with pytest.raises(TypeError, match=r"return_assistant_tokens_mask= is not supported.*MultimodalCollator"):
        chat_processor.apply_chat_template(said, return_assistant_tokens_mask=True)
    assert chat_processor.apply_chat_template(said[0], "{{ mood }}{{ messages[0].content }}", mood="!") == "!Hi"


def test_the_last_message_can_be_left_open(chat_processor):
    """``continue_final_message`` gives the same text as the tokenizer's own method."""
    said = [user("Hi"), assistant("Well,")]
    text_ = chat_processor.apply_chat_template(said, continue_final_message=True)
    assert text_ == chat_processor.tokenizer.apply_chat_template(
        said, chat_template=words.CHATML, tokenize=False, continue_final_message=True
    )
    assert text_.endswith("Well,")


def test_bos_is_not_doubled():
    """BOS is added if the template does not write it. Nothing is added after a prompt."""
    processor = words.processor(tokenizer=words.tokenizer(bos=True, eos=True))
    with_bos = processor.apply_chat_template([user("Hi")], words.LLAMA2, tokenize=True)[0].tolist()
    without = processor.apply_chat_template([user("Hi")], words.CHATML, tokenize=True)[0].tolist()
    assert with_bos.count(1) == without.count(1) == 1
    assert with_bos[0] == without[0] == 1
    assert 2 not in with_bos + without


# --- with the model ---------------------------------------------------------------------------------------------------


def test_only_torch_tensors_are_returned(processor):
    """Another ``return_tensors`` is refused."""
    with pytest.raises(InputError, match="'pt'"):
        processor(text="a", return_tensors="np")


def test_logits_of_a_mixed_batch_equal_those_of_its_samples():
    """For samples with no, one and two images in one batch, padded on either side."""
    model = words.model("llava")
    processor = words.processor(model=model)
    texts = ["<vision> a cat", "a dog", "<vision> and <vision>, please"]
    images = [[words.image(0)], [], [words.image(1), words.image(2)]]
    with torch.no_grad():
        for side in ("right", "left"):
            batch = processor(text=texts, vision=images, padding_side=side)
            together = model(**batch).logits
            for row, (text, media) in enumerate(zip(texts, images, strict=True)):
                alone = model(**processor(text=text, vision=[media])).logits[0]
                kept = together[row][batch["attention_mask"][row].bool()]
                assert torch.allclose(kept, alone, atol=1e-5)


def test_a_left_padded_batch_generates():
    """The result contains the prompt and can be decoded."""
    model = words.model("llava")
    processor = words.processor(model=model)
    batch = processor(text=["<vision> a cat", "a"], vision=words.image(), padding_side="left")
    ids = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert ids.shape == (2, batch["input_ids"].shape[1] + 3)
    texts = processor.batch_decode(ids, skip_special_tokens=True)
    assert texts[0].startswith(" a cat")
    assert processor.decode(ids[1], skip_special_tokens=True) == texts[1]


def test_batches_equal_those_of_hugging_faces_processor():
    """``LlavaProcessor`` gives equal ids, masks and pixels for the same texts, images and tokenizer."""
    size = {"shortest_edge": 32}
    images = CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32})
    tokenizer = words.tokenizer(bos=True, extra_special_tokens=["<image>"])
    theirs = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    ours = words.processor("llava", tokenizer=tokenizer, tokens={"vision": "<image>"}, processors={"vision": images})
    texts = ["USER: <image>\nWhat is this? ASSISTANT:", "<image><image> both", "no image at all"]
    media = [words.image(0), words.image(1, (50, 20)), words.image(2)]
    for side in ("left", "right"):
        expected = theirs(text=texts, images=media, padding=True, padding_side=side, return_tensors="pt")
        batch = ours(text=texts, images=media, padding_side=side)
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["attention_mask"], expected["attention_mask"])
        assert torch.equal(batch["encoder_inputs"]["vision"]["pixel_values"], expected["pixel_values"])
