"""LLaVA-NeXT, composed of its parts, equals Hugging Face's class with the same weights bit for bit (CPU, float32)."""

from __future__ import annotations

import random

import pytest
import tiny
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
)

from cornstarch_core import ModalEncoderModule, MultimodalModel
from cornstarch_core.errors import CompositionError

CROP = tiny.VISION["image_size"]
PINPOINTS = [[CROP * rows, CROP * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
TEXTS = {
    "mistral": (MistralConfig, MistralForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}
# Hugging Face's model runs no other strategies: with a CLS token or one patch less, the features form no grid.
TOWERS = {"clip": (CLIPVisionConfig, {}, "default"), "siglip": (SiglipVisionConfig, {"vision_use_head": False}, "full")}
CASES = [(tower, text, layer) for tower in TOWERS for text in TEXTS for layer in (-2, [-2, -1])]
NEWLINE = "model.image_newline"


def reference(tower: str, text: str, layer: int | list[int] = -2, seed: int = 0) -> LlavaNextForConditionalGeneration:
    """Make Hugging Face's LLaVA-NeXT with random weights."""
    torch.manual_seed(seed)
    vision_class, options, strategy = TOWERS[tower]
    config = LlavaNextConfig(
        vision_config=vision_class(**tiny.VISION, **options),
        text_config=TEXTS[text][0](
            vocab_size=tiny.VOCABULARY + 1,
            hidden_size=tiny.WIDTH,
            intermediate_size=96,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_hidden_layers=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=tiny.IMAGE_TOKEN,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=layer,
    )
    return LlavaNextForConditionalGeneration(config).eval()


def composed(hf: LlavaNextForConditionalGeneration, text: str) -> MultimodalModel:
    """Compose a model of the parts of Hugging Face's model."""
    with torch.device("meta"):
        llm = TEXTS[text][1](hf.config.text_config)
    llm.model, llm.lm_head = hf.model.language_model, hf.lm_head
    encoder = ModalEncoderModule(
        hf.model.vision_tower,
        hf.model.multi_modal_projector,
        callbacks="llava-next",
        callback_options={
            "image_grid_pinpoints": hf.config.image_grid_pinpoints,
            "vision_feature_layer": hf.config.vision_feature_layer,
            "vision_feature_select_strategy": hf.config.vision_feature_select_strategy,
        },
    )
    model = MultimodalModel(encoders={"vision": encoder}, language_model=llm)
    model.vision_encoder.postprocess_projector_callback.image_newline = hf.model.image_newline
    model.set_modality_token_ids({"vision": hf.config.image_token_id})
    return model.eval()


def sizes(seed: int) -> list[list[tuple[int, int]]]:
    """Draw sizes of 1 to 3 images for each of two samples; the first two sets have an image of 1:9 and one of 9:1."""
    generator = random.Random(seed)
    found = [
        [(generator.randint(1, 200), generator.randint(1, 200)) for _ in range(generator.randint(1, 3))]
        for _ in range(2)
    ]
    if seed < 2:
        found[seed][0] = (20, 180) if seed else (180, 20)
    return found


def batch(model: MultimodalModel, samples: list[list[tuple[int, int]]], seed: int = 3) -> dict:
    """Make a batch like Hugging Face's processor: padded crops, sizes, and a placeholder for each feature."""
    flat = [size for images in samples for size in images]
    anyres = model.vision_encoder.postprocess_projector_callback.anyres
    counts = iter(anyres.num_features({"image_sizes": flat}, []))
    rows = [[1, *(token for _ in images for token in [7, 9, *[tiny.IMAGE_TOKEN] * next(counts)]), 5, 4, 3, 8]
            for images in samples]  # fmt: skip
    length = max(map(len, rows))
    mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    crops = [anyres.tiler.tile(size).crops for size in flat]
    noise = torch.Generator().manual_seed(seed)
    return {
        "input_ids": ids,
        "attention_mask": torch.tensor(mask),
        "pixel_values": torch.randn(len(flat), max(crops), 3, CROP, CROP, generator=noise),
        "image_sizes": torch.tensor(flat),
    }


def left_padded(inputs: dict) -> dict:
    """Move the padding of each row to its left."""
    shifts = (inputs["attention_mask"] == 0).sum(1).tolist()
    moved = {
        name: torch.stack([row.roll(shift) for row, shift in zip(inputs[name], shifts, strict=True)])
        for name in ("input_ids", "attention_mask")
    }
    return {**inputs, **moved}


def step(model: torch.nn.Module, hf: LlavaNextForConditionalGeneration, inputs: dict) -> tuple:
    """Run a step; return logits, loss and the gradients of all parameters by Hugging Face's names."""
    for parameter in hf.parameters():
        parameter.grad = None
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] == 100), -100)
    output = model(**inputs, labels=labels)
    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in hf.named_parameters() if parameter.grad is not None}
    return output.logits.detach(), output.loss.detach(), gradients


def assert_equal_steps(hf: LlavaNextForConditionalGeneration, model: MultimodalModel, inputs: dict) -> None:
    """Assert that a step is equal bit for bit, except the newline's gradient, which is summed in another order."""
    logits, loss, gradients = step(hf, hf, inputs)
    our_logits, our_loss, our_gradients = step(model, hf, inputs)
    assert torch.equal(our_logits, logits)
    assert torch.equal(our_loss, loss)
    assert our_gradients.keys() <= gradients.keys()
    newline, our_newline = gradients.pop(NEWLINE), our_gradients.pop(NEWLINE)
    assert (our_newline - newline).norm() <= 1e-6 * newline.norm()
    assert newline.norm() > 0
    for name, gradient in gradients.items():
        # An unused layer has zero gradients in one model and none in the other.
        assert torch.equal(our_gradients.get(name, torch.zeros_like(gradient)), gradient), name
    assert sum(gradient.abs().sum() > 0 for gradient in our_gradients.values()) > 20


@pytest.mark.parametrize(("tower", "text", "layer"), CASES)
def test_logits_loss_and_every_gradient_are_equal(tower, text, layer):
    """A step is equal for each vision encoder, language model and layer, with images of different shapes."""
    hf = reference(tower, text, layer)
    model = composed(hf, text)
    for seed in (0, 2):
        assert_equal_steps(hf, model, batch(model, sizes(seed)))


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("seed", range(20))
def test_steps_are_equal_for_images_of_any_sizes(tower, seed):
    """A step is equal for 20 random sets of image sizes, with 1 to 3 images in a sample."""
    hf = reference(tower, "mistral")
    model = composed(hf, "mistral")
    assert_equal_steps(hf, model, batch(model, sizes(seed)))


@pytest.mark.parametrize("tower", TOWERS)
def test_logits_are_equal_without_padding_and_without_media(tower):
    """Logits are equal for images with the same number of crops, for flat crops, and for text alone."""
    hf = reference(tower, "llama")
    model = composed(hf, "llama")
    inputs = batch(model, [[(64, 64)], [(50, 60), (64, 64)]])
    assert torch.equal(model(**inputs).logits, hf(**inputs).logits)
    flat = {**inputs, "pixel_values": inputs["pixel_values"].flatten(0, 1)}
    assert torch.equal(model(**flat).logits, hf(**flat).logits)
    text = {"input_ids": torch.tensor([[1, 5, 6, 7]])}
    assert torch.equal(model(**text).logits, hf(**text).logits)


@pytest.mark.parametrize(("tower", "text", "layer"), CASES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_generated_ids_are_equal(tower, text, layer, side):
    """Greedy search gives equal ids for prompts of different lengths, padded on either side."""
    hf = reference(tower, text, layer)
    model = composed(hf, text)
    inputs = batch(model, [[(90, 30)], [(64, 64), (20, 180)]])
    inputs = left_padded(inputs) if side == "left" else inputs
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **settings), hf.generate(**inputs, **settings))


@pytest.mark.parametrize(("tower", "strategy"), [("clip", "full"), ("siglip", "default")])
def test_hugging_faces_model_runs_no_other_strategies(tower, strategy):
    """Hugging Face's model fails with these strategies. Composing refuses CLIP with CLS, and keeps all patches of SigLIP."""
    hf = reference(tower, "llama")
    ours = composed(hf, "llama")
    inputs = batch(ours, [[(90, 30)]])
    hf.model.config.vision_feature_select_strategy = hf.config.vision_feature_select_strategy = strategy
    with pytest.raises(RuntimeError):
        hf(**inputs)
    if tower == "clip":
        with pytest.raises(CompositionError, match="a crop has 17 tokens"):
            composed(hf, "llama")
    else:
        assert torch.equal(composed(hf, "llama")(**inputs).logits, ours(**inputs).logits)


@pytest.mark.parametrize("tower", TOWERS)
def test_left_padded_batches_generate_the_ids_of_single_samples(tower):
    """The generated ids of a sample do not depend on the other samples of its batch."""
    model = composed(reference(tower, "mistral"), "mistral")
    samples = [[(90, 30)], [(64, 64), (20, 180)]]
    inputs = left_padded(batch(model, samples))
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    together = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    first = 0
    for sample, images in enumerate(samples):
        kept = inputs["attention_mask"][sample].bool()
        own = slice(first, first + len(images))
        alone = {name: inputs[name][sample : sample + 1, kept] for name in ("input_ids", "attention_mask")}
        media = {name: inputs[name][own] for name in ("pixel_values", "image_sizes")}
        answer = model.generate(**alone, **media, **settings)
        assert torch.equal(answer[0, kept.sum() :], together[sample])
        first += len(images)
