"""All checks of an encoder in one class."""

from __future__ import annotations

from .feature_checks import FeatureChecks
from .model_checks import ModelChecks
from .training_checks import TrainingChecks

__all__ = ["EncoderConformance"]


class EncoderConformance(FeatureChecks, TrainingChecks, ModelChecks):
    """The checks of one encoder of a plugin, run on a small real one. Inherit it in a class that pytest collects.

    The language model, a tiny Llama, and the tokenizer come from here. One class takes a few seconds.

    Attributes:
        encoder: name of its :class:`~cornstarch_core.specs.EncoderSpec`, ``"cornstarch-series/patches"`` or bare.
        key: modality key in the model; default: the spec's ``modality``.
        callbacks: name of registered callbacks to run with it; default: none.
        callback_options: options for them.
        projection_type: of the projector, ``"linear"``, ``"mlp"`` or one that a plugin registers.
        lora_targets: names of layers for LoRA; default: all layers of one kind, linear ones first, that get gradients.
        rounds: how many random batches are counted.
        tolerance: how much an item's features may depend on its batch, as a fraction of the largest feature.
        bf16_tolerance: how much features may differ in bfloat16, as a fraction of their norm.

    Define :meth:`make_module` and :meth:`make_items`. If a check can't hold for an encoder, override it in the subclass
    with ``@pytest.mark.xfail(reason="...")``, and call ``super()``.

    Example:
        >>> from cornstarch_core.testing import EncoderConformance
        >>> from transformers import CLIPVisionConfig, CLIPVisionModel
        >>> class TestClip(EncoderConformance):
        ...     encoder = "cornstarch-vision/clip"
        ...     callbacks = "llava"
        ...
        ...     def make_module(self):
        ...         sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
        ...         return CLIPVisionModel(CLIPVisionConfig(**sizes, num_hidden_layers=2, image_size=32, patch_size=8))
        ...
        ...     def make_items(self, rng):
        ...         height, width = rng.integers(8, 80, 2)
        ...         return [rng.integers(0, 256, (height, width, 3), dtype="uint8")]
        >>> TestClip().test_features_are_as_many_as_were_counted()
    """
