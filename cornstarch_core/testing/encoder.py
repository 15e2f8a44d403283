"""The test class with all checks of an encoder."""

from __future__ import annotations

from .feature_checks import FeatureChecks
from .model_checks import ModelChecks
from .training_checks import TrainingChecks

__all__ = ["EncoderConformance"]


class EncoderConformance(FeatureChecks, TrainingChecks, ModelChecks):
    """The checks of one encoder of a plugin. Inherit from this class in a test class that pytest collects.

    The checks compose a small encoder, which the subclass makes, with a tiny Llama and a tokenizer, which this kit
    provides. All checks of one encoder take a few seconds.

    Attributes:
        encoder: name of the encoder's :class:`~cornstarch_core.specs.EncoderSpec`: qualified,
            ``"cornstarch-series/patches"``, or bare, ``"patches"``.
        key: modality key of the encoder in the model; default: the spec's ``modality``.
        callbacks: name of the registered callbacks to use with the encoder; default: no callbacks.
        callback_options: options for the callbacks.
        projection_type: type of the projector: ``"linear"``, ``"mlp"`` or a type that a plugin registers.
        lora_targets: names of the layers that LoRA wraps; default: all layers of one type that get gradients, where
            linear layers are preferred to other types.
        rounds: number of random batches with which features are counted and compared.
        tolerance: largest allowed difference between an item's features alone and in a batch, as a fraction of the
            largest feature.
        bf16_tolerance: largest allowed difference between features in bfloat16 and in float32, as a fraction of the
            norm of the features.

    A subclass defines :meth:`make_module` and :meth:`make_items`. If an encoder can't pass a check, override the check
    in the subclass, mark it with ``@pytest.mark.xfail(reason="...")``, and call ``super()`` in it.

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
