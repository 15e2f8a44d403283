"""The checks of an encoder in training: gradients, adapters, bfloat16, and batches without its modality."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from .._hf.peft import unwrap
from ..modeling.distributed import dummy_forward
from .composed import Composed, distance, seeded
from .encoder_under_test import EncoderUnderTest
from .feature_checks import COUNTS, DUMMIES
from .promises import promise

__all__ = ["GRADIENTS", "TrainingChecks"]

GRADIENTS = "test_gradients_reach_every_weight_that_is_used"
"""Name of a check that other checks depend on."""

_WRAPPABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)


class TrainingChecks(EncoderUnderTest):
    """The checks of an encoder in training."""

    @promise(COUNTS)
    def test_gradients_reach_every_weight_that_is_used(self) -> None:
        """Every weight of the module, the projector and the callbacks that changes the features gets a gradient."""
        composed, items = self.keep("trained", self._train), self.items(200, least=2)
        inputs, _ = self.prepare(items)
        weights = dict(composed.encoder.named_parameters())
        silent = [name for name, weight in weights.items() if not _has_gradient(weight)]
        cut = [name for name in silent if _matters(weights[name], lambda: composed.features(inputs))]
        if cut:
            self.fail(
                f"{len(cut)} weights make a difference to the features, but get no gradient ({', '.join(cut[:3])}).",
                "Something cuts the graph between them and the features: look for detach(), .data, .item(), NumPy and "
                f"torch.no_grad() in {self.module_name}.forward and the callbacks.",
            )
        wild = [name for name, weight in weights.items() if not _is_finite(weight.grad)]
        fix = f"Look in {self.module_name}.forward for a division by zero, a root or a logarithm at zero."
        if wild:
            self.fail(f"gradients of {', '.join(wild[:3])} are not finite on {len(items)} items of make_items.", fix)

    def _train(self) -> Composed:
        """Return a model whose whole encoder is trainable, after one backward pass."""
        composed = self.fresh()
        composed.model.set_trainable(encoders={composed.key: (True, True)})
        fix = f"Look in {self.module_name}.forward and callbacks for operations in place (x += y), and inference_mode."
        with self.failing("it can't be trained", fix):
            composed.loss(composed.batch((3, self.items(200, least=2)))).backward()
        return composed

    @promise(GRADIENTS)
    def test_adapters_in_the_module_are_run(self) -> None:
        """If PEFT wraps the module, its adapters change the logits, and all of them get gradients."""
        targets = self.lora_targets or self._find_targets()
        if not targets:
            pytest.skip("no layer that LoRA can wrap; name some in lora_targets")
        config = LoraConfig(target_modules=targets, init_lora_weights=False, r=2)
        fix = "The module is then a PeftModel: let callbacks call it, and read its attributes from get_base_model()."
        with self.failing("wrapped by PEFT, it can't be run", fix):
            composed = self.compose(lambda module: get_peft_model(module, config).eval())
            batch = composed.batch((3, self.items(300)))
            composed.loss(batch).backward()
            with torch.no_grad():
                adapted = composed.model(**batch).logits
                with composed.encoder.module.disable_adapter():
                    is_same = torch.equal(adapted, composed.model(**batch).logits)
        weights = {name: p for name, p in composed.encoder.module.named_parameters() if p.requires_grad}
        silent = [name for name, weight in weights.items() if not _has_gradient(weight)]
        if silent or is_same:
            example = f" ({silent[0]}, …)" if silent else ""
            logits = "the same as" if is_same else "other than"
            self.fail(
                f"with LoRA in {', '.join(targets[:3])}, {len(silent)} of {len(weights)} adapter weights get no "
                f"gradient{example}, and the logits are {logits} without it.",
                f"Let {self.module_name}.forward call its layers, self.layer(x), and not use self.layer.weight; let "
                "run_module of the callbacks call its module; or name the layers that are called in lora_targets.",
            )

    def _find_targets(self) -> list[str]:
        """Return the names of the layers with gradients, all of the first type in ``_WRAPPABLE`` that has any."""
        layers = unwrap(self.keep("trained", self._train).encoder.module).named_modules()
        used = {name: type(layer) for name, layer in layers if name and _has_gradient(getattr(layer, "weight", None))}
        of_kinds = ([name for name, kind in used.items() if kind is wanted] for wanted in _WRAPPABLE)
        return next(filter(None, of_kinds), [])

    @promise(GRADIENTS)
    def test_it_runs_in_bfloat16(self) -> None:
        """A model in bfloat16 trains, and its features are close to those in float32."""
        composed, items = self.fresh(), self.items(400, least=2)
        composed.model.bfloat16()
        inputs, _ = self.prepare(items)
        fix = (
            f"{self.module_name}.forward gets inputs in the dtype of its weights: keep to it, without .float() and "
            "dtype=torch.float32, or cast back before the next layer; compute positions and times as integers."
        )
        with self.failing("it doesn't run in bfloat16", fix):
            loss = composed.loss(composed.batch((3, items)))
            loss.backward()
            with torch.no_grad():
                features, expected = composed.features(inputs).float(), self.composed.features(inputs)
        if not all(map(_is_finite, (loss, features, *(p.grad for p in composed.encoder.parameters())))):
            self.fail("in bfloat16 its features or gradients are not finite.", fix)
        difference = float((features - expected).norm() / expected.norm().clamp(min=1e-12))
        if not difference <= self.bf16_tolerance:
            more = f"{difference:.1%}, more than bf16_tolerance={self.bf16_tolerance:g}"
            self.fail(f"features in bfloat16 differ from those in float32 by {more}.", fix)

    @promise(GRADIENTS, DUMMIES)
    def test_a_batch_without_the_modality_trains(self) -> None:
        """A batch of text alone trains; if other ranks have media, the module runs on its dummy inputs."""
        composed = self.fresh()
        composed.model.set_trainable(encoders={composed.key: (True, True)})
        composed.model.train()
        fix = (
            f"Where several processes train, one without media runs {self.module_name} on {self.target}.dummy_inputs "
            "in training mode. Make its features finite (an epsilon where it divides), or change the dummy inputs."
        )
        with self.failing("a batch of text alone can't be trained on", fix):
            loss = composed.loss(composed.batch((5, []), (3, []))) + dummy_forward(composed.encoder)
            loss.backward()
        names = [name for name, p in composed.encoder.named_parameters() if not _is_finite(p.grad)]
        if names or not _is_finite(loss):
            found = f"gradients of {', '.join(names[:3])}" if names else "the loss"
            self.fail(f"on a batch of text alone {found} would be NaN or infinite.", fix)


def _has_gradient(weight: object) -> bool:
    return isinstance(weight, nn.Parameter) and weight.grad is not None and bool(weight.grad.any())


def _is_finite(value: torch.Tensor | None) -> bool:
    return value is None or bool(torch.isfinite(value).all())


@torch.no_grad()
def _matters(weight: nn.Parameter, features: Callable[[], torch.Tensor]) -> bool:
    """Whether a change of the weight changes the features."""
    if not weight.is_floating_point():
        return False
    before, kept = features(), weight.clone()
    with seeded(3):
        weight.add_(torch.randn_like(weight))
    after = features()
    weight.copy_(kept)
    return distance(after, before) > 1e-3
