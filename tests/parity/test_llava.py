"""LLaVA-1.5, composed of its parts, equals Hugging Face's class with the same weights bit for bit (CPU, float32)."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers
from packaging.version import Version
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from cornstarch_core import ModalEncoderModule, MultimodalModel

TOWERS = {"clip": (CLIPVisionConfig, 17), "siglip": (SiglipVisionConfig, 16)}
CASES = [
    (tower, strategy, layer) for tower in TOWERS for strategy in ("default", "full") for layer in (-2, -1, [-2, -1])
]


def reference(tower: str, strategy: str, layer: int | list[int], seed: int = 0) -> LlavaForConditionalGeneration:
    """Make Hugging Face's LLaVA with random weights."""
    torch.manual_seed(seed)
    text = {
        "vocab_size": tiny.VOCABULARY + 1,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = LlavaConfig(
        vision_config=TOWERS[tower][0](**tiny.VISION, vision_use_head=False)
        if tower == "siglip"
        else TOWERS[tower][0](**tiny.VISION),
        text_config=LlamaConfig(**text),
        image_token_id=tiny.IMAGE_TOKEN,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=layer,
    )
    return LlavaForConditionalGeneration(config).eval()


def composed(hf: LlavaForConditionalGeneration, tower: str) -> MultimodalModel:
    """Compose a model of the vision encoder, the projector and the language model of Hugging Face's model."""
    llm = tiny.llama(**{k: v for k, v in hf.config.text_config.to_dict().items() if k in ("vocab_size", "hidden_size")})
    llm.model, llm.lm_head = hf.model.language_model, hf.lm_head
    # With "default", Hugging Face drops one token even if the vision encoder has no CLS token.
    drop = 1 if hf.config.vision_feature_select_strategy == "default" else None
    encoder = ModalEncoderModule(
        hf.model.vision_tower,
        hf.model.multi_modal_projector,
        callbacks="llava",
        callback_options={
            "vision_feature_layer": hf.config.vision_feature_layer,
            "vision_feature_select_strategy": hf.config.vision_feature_select_strategy,
            "drop_tokens": drop,
        },
    )
    model = MultimodalModel(encoders={"vision": encoder}, language_model=llm)
    model.set_modality_token_ids({"vision": hf.config.image_token_id})
    return model.eval()


def batch(tower: str, strategy: str, *images: int) -> dict:
    """Make prompts with a placeholder for each feature of the vision encoder."""
    return tiny.prompt(*images, tokens=TOWERS[tower][1] - (strategy == "default"))


@pytest.mark.parametrize(("tower", "strategy", "layer"), CASES)
def test_logits_loss_and_every_gradient_are_equal(tower, strategy, layer):
    """Logits, loss and gradients are equal for several images in a sample, padded on the right."""
    hf = reference(tower, strategy, layer)
    model = composed(hf, tower)
    inputs, pixels = batch(tower, strategy, 1, 2, 0), tiny.pixels(3)
    results = []
    for one in (hf, model):
        for parameter in hf.parameters():
            parameter.grad = None
        output = one(**inputs, pixel_values=pixels)
        output.loss.backward()
        gradients = {name: parameter.grad for name, parameter in hf.named_parameters() if parameter.grad is not None}
        results.append((output.logits, output.loss, gradients))
    (logits, loss, gradients), (our_logits, our_loss, our_gradients) = results
    assert torch.equal(our_logits, logits)
    assert torch.equal(our_loss, loss)
    assert our_gradients.keys() <= gradients.keys()
    for name, gradient in gradients.items():
        # An unused layer has zero gradients in one model and none in the other.
        assert torch.equal(our_gradients.get(name, torch.zeros_like(gradient)), gradient), name
    assert sum(gradient.abs().sum() > 0 for gradient in our_gradients.values()) > 20


@pytest.mark.parametrize(("tower", "strategy", "layer"), CASES)
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_generated_ids_are_equal_in_a_left_padded_batch(tower, strategy, layer, how):
    """Greedy and beam search give equal ids for prompts of different lengths."""
    hf = reference(tower, strategy, layer)
    model = composed(hf, tower)
    # In transformers 5.17, beams of Hugging Face's class get the wrong images if a sample has several.
    several = 2 if not how or Version(transformers.__version__) >= Version("5.23") else 0
    inputs, pixels = left_padded(batch(tower, strategy, several, 1)), tiny.pixels(several + 1)
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, **how}
    expected = hf.generate(**inputs, pixel_values=pixels, **settings)
    assert torch.equal(model.generate(**inputs, pixel_values=pixels, **settings), expected)


def left_padded(inputs: dict) -> dict:
    """Move the padding of each row to its left."""
    shifts = (inputs["attention_mask"] == 0).sum(1).tolist()
    return {
        name: torch.stack([row.roll(shift) for row, shift in zip(inputs[name], shifts, strict=True)])
        for name in ("input_ids", "attention_mask")
    }


@pytest.mark.parametrize("tower", TOWERS)
def test_left_padded_batches_generate_the_ids_of_single_samples(tower):
    """The generated ids of a sample do not depend on the other samples of its batch."""
    model = composed(reference(tower, "full", -2), tower)
    inputs, pixels = left_padded(batch(tower, "full", 2, 1)), tiny.pixels(3)
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    together = model.generate(**inputs, pixel_values=pixels, **settings)[:, inputs["input_ids"].shape[1] :]
    for sample, images in enumerate((pixels[:2], pixels[2:])):
        kept = inputs["attention_mask"][sample].bool()
        alone = {name: tensor[sample : sample + 1, kept] for name, tensor in inputs.items()}
        answer = model.generate(**alone, pixel_values=images, **settings)
        assert torch.equal(answer[0, kept.sum() :], together[sample])
