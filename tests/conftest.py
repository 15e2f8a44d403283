"""What every test needs: quiet, offline, and a model at hand."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


@pytest.fixture
def mllm():
    """CLIP and Llama, composed; the placeholder id lies outside the embedding table."""
    import tiny

    from cornstarch_core import ModalEncoderModule, MultimodalModel

    model = MultimodalModel(encoders={"vision": ModalEncoderModule(tiny.clip())}, language_model=tiny.llama())
    model.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    return model.eval()


@pytest.fixture(autouse=True)
def _seed():
    """Random weights are the same in every run, and tiny models are quicker on one thread."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
