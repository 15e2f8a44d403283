"""Compares a composed Qwen2-Audio with Hugging Face's own class, with the same weights: time, and bytes autograd saves.

    python benchmarks/qwen2_audio_step.py --device cpu --steps 20

The clips of a batch have different lengths.
"""

import torch
from side_by_side import run
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM

from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProjector, MultimodalProjectorConfig

SIZES = {
    "small": {"audio": (250, 192, 4, 12), "text": (192, 4, 12), "vocabulary": 2000},  # windows of 5 s
    "large": {"audio": (1500, 1280, 32, 20), "text": (2048, 16, 16), "vocabulary": 32000},  # of 30 s
}
CLIPS, TEXT, MEL_BINS = 8, 32, 128


def build(size: str, device: str, dtype: torch.dtype) -> tuple[Qwen2AudioForConditionalGeneration, MultimodalModel]:
    """Make the peer, and compose a model of the same modules. The audio encoder is frozen in both."""
    positions, width, layers, heads = SIZES[size]["audio"]
    text_width, text_layers, text_heads = SIZES[size]["text"]
    vocabulary = SIZES[size]["vocabulary"]
    tower = {
        "d_model": width, "encoder_ffn_dim": 4 * width, "encoder_layers": layers, "encoder_attention_heads": heads,
        "num_mel_bins": MEL_BINS, "max_source_positions": positions,
    }  # fmt: skip
    text = Qwen2Config(
        vocab_size=vocabulary, hidden_size=text_width, intermediate_size=4 * text_width, num_hidden_layers=text_layers,
        num_attention_heads=text_heads, num_key_value_heads=text_heads, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    peer = Qwen2AudioForConditionalGeneration(
        Qwen2AudioConfig(audio_config=tower, text_config=text.to_dict(), audio_token_index=vocabulary - 1)
    ).to(device, dtype)
    with torch.device("meta"):
        qwen2 = Qwen2ForCausalLM(text)
    qwen2.model, qwen2.lm_head = peer.model.language_model, peer.lm_head
    linear = peer.model.multi_modal_projector.linear
    config = MultimodalProjectorConfig(in_features=width, out_features=text_width)
    encoder = ModalEncoderModule(peer.model.audio_tower, MultimodalProjector(config, linear), callbacks="audio")
    composed = MultimodalModel(encoders={"audio": encoder}, language_model=qwen2)
    composed.set_modality_token_ids({"audio": vocabulary - 1})
    composed.set_trainable(encoders={"audio": (False, True)}, language_model=True)
    return peer, composed


def make_batch(peer: Qwen2AudioForConditionalGeneration, device: str, dtype: torch.dtype) -> tuple[dict, dict]:
    """Make a batch for the peer, and the same with lengths and positions for the composed model; one clip a sample."""
    token_id, longest = peer.config.audio_token_id, 2 * peer.config.audio_config.max_source_positions
    lengths = [longest * (clip + 1) // CLIPS for clip in range(CLIPS)]
    counts = [((length - 1) // 2 + 1) // 2 for length in lengths]
    ids = torch.zeros(CLIPS, TEXT + max(counts), dtype=torch.int64)
    for row, count in zip(ids, counts, strict=True):  # padded on the left, for generation
        row[-TEXT - count :] = torch.randint(3, token_id, (TEXT + count,))
        row[-TEXT - count + 4 : -TEXT + 4] = token_id
    labels = ids.masked_fill((ids == token_id) | (ids == 0), -100)
    shared = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}
    shared = {name: tensor.to(device) for name, tensor in shared.items()}
    features = torch.randn(CLIPS, MEL_BINS, longest, dtype=dtype).to(device)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long().to(device)
    positions = (ids.flatten() == token_id).nonzero().squeeze(1).to(device)
    audio = {"input_features": features, "audio_lengths": lengths, "audio_windows": [1] * CLIPS, "positions": positions}
    theirs = {**shared, "input_features": features, "feature_attention_mask": mask}
    return theirs, {**shared, "encoder_inputs": {"audio": audio}}


if __name__ == "__main__":
    run(__doc__, SIZES, build, make_batch)
