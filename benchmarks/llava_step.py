"""Compares a composed LLaVA-1.5 with Hugging Face's own class, with the same weights: time, and bytes autograd saves.

    python benchmarks/llava_step.py --device cpu --steps 20

Each sample has one image.
"""

import torch
from side_by_side import run
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from cornstarch_core import ModalEncoderModule, MultimodalModel

SIZES = {
    "small": {"vision": (64, 192, 4, 12), "text": (192, 4, 12), "vocabulary": 2000},
    "large": {"vision": (336, 1024, 24, 16), "text": (2048, 16, 16), "vocabulary": 32000},
}
IMAGES, TEXT = 8, 32


def build(size: str, device: str, dtype: torch.dtype) -> tuple[LlavaForConditionalGeneration, MultimodalModel]:
    """Make the peer, and compose a model of the same modules. The vision encoder is frozen in both."""
    pixels, width, layers, heads = SIZES[size]["vision"]
    text_width, text_layers, text_heads = SIZES[size]["text"]
    vocabulary = SIZES[size]["vocabulary"]
    tower = CLIPVisionConfig(
        image_size=pixels, patch_size=14 if size == "large" else 8, hidden_size=width, intermediate_size=4 * width,
        num_hidden_layers=layers, num_attention_heads=heads,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=vocabulary, hidden_size=text_width, intermediate_size=4 * text_width, num_hidden_layers=text_layers,
        num_attention_heads=text_heads, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    peer = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=tower, text_config=text, image_token_id=vocabulary - 1)
    ).to(device, dtype)
    with torch.device("meta"):
        llama = LlamaForCausalLM(text)
    llama.model, llama.lm_head = peer.model.language_model, peer.lm_head
    encoder = ModalEncoderModule(peer.model.vision_tower, peer.model.multi_modal_projector, callbacks="llava")
    composed = MultimodalModel(encoders={"vision": encoder}, language_model=llama)
    composed.set_modality_token_ids({"vision": vocabulary - 1})
    composed.set_trainable(encoders={"vision": (False, True)}, language_model=True)
    return peer, composed


def make_batch(peer: LlavaForConditionalGeneration, device: str, dtype: torch.dtype) -> tuple[dict, dict]:
    """Make a batch for the peer, and the same with positions for the composed model; one image a sample."""
    vision, token_id = peer.config.vision_config, peer.config.image_token_id
    patches = (vision.image_size // vision.patch_size) ** 2
    ids = torch.randint(3, token_id, (IMAGES, TEXT + patches))
    ids[:, 4 : 4 + patches] = token_id
    labels = ids.masked_fill(ids == token_id, -100)
    positions = (ids.flatten() == token_id).nonzero().squeeze(1)
    pixels = torch.randn(IMAGES, 3, vision.image_size, vision.image_size, dtype=dtype)
    shared = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    shared = {name: tensor.to(device) for name, tensor in shared.items()}
    media = {"pixel_values": pixels.to(device), "positions": positions.to(device)}
    return {**shared, "pixel_values": media["pixel_values"]}, {**shared, "encoder_inputs": {"vision": media}}


if __name__ == "__main__":
    run(__doc__, SIZES, build, make_batch)
