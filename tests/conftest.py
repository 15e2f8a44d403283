"""Settings and fixtures for all tests: offline mode, a fixed seed, and a composed model."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


@pytest.fixture
def mllm():
    """A model composed of CLIP and Llama, with a placeholder id outside the embedding table."""
    import tiny

    from cornstarch_core import ModalEncoderModule, MultimodalModel

    model = MultimodalModel(encoders={"vision": ModalEncoderModule(tiny.clip())}, language_model=tiny.llama())
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    return model.eval()


@pytest.fixture(autouse=True)
def _seed():
    """Fix the seed, so random weights are the same in every run, and use one thread, which is faster for tiny models."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
