"""What an encoder promises to those who train: gradients, adapters, bfloat16, and batches that have none of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from .._hf import unwrap
from ..distributed import idle_output
from .composed import Composed, distance, seeded
from .features import COUNTS, DUMMIES
from .promises import fail, promise, say
from .subject import EncoderSubject

__all__ = ["GRADIENTS", "TrainingChecks"]

GRADIENTS = "test_gradients_reach_every_weight_that_is_used"
"""Name of a check that others build on."""

_WRAPPABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)


class TrainingChecks(EncoderSubject):
    """The checks of an encoder in training."""

    @promise(COUNTS)
    def test_gradients_reach_every_weight_that_is_used(self) -> None:
        """Every weight of module, projector and callbacks that makes a difference to the features gets a gradient."""
        composed, items = self._trained, self.items(200, least=2)
        inputs, _ = self.prepare(items)
        silent = {name: p for name, p in composed.encoder.named_parameters() if not _has_gradient(p)}
        cut = [name for name, weight in silent.items() if _matters(weight, lambda: composed.features(inputs))]
        if cut:
            fail(
                f"{self.name}: {len(cut)} weights make a difference to the features, but get no gradient from the loss "
                f"({', '.join(cut[:3])}).",
                "Something cuts the graph between them and the features: look for detach(), .data, .item(), NumPy and "
                f"torch.no_grad() in {self.module_name}.forward, and in the callbacks.",
            )
        wild = [name for name, p in composed.encoder.named_parameters() if not _is_finite(p.grad)]
        if wild:
            fail(
                f"{self.name}: gradients of {', '.join(wild[:3])} are not finite on {len(items)} items of make_items.",
                f"Look in {self.module_name}.forward for a division by zero, a root or a logarithm at zero.",
            )

    @property
    def _trained(self) -> Composed:
        """A model after a backward pass with all of its encoder unfrozen."""
        return self.keep("trained", self._train)

    def _train(self) -> Composed:
        composed = self.fresh()
        composed.model.set_trainable(encoders={composed.key: (True, True)})
        try:
            composed.loss(composed.batch((3, self.items(200, least=2)))).backward()
        except Exception as error:
            fail(
                f"{self.name}: it can't be trained: {say(error)}.",
                f"Look in {self.module_name}.forward, and in the callbacks, for operations in place (x += y) "
                "on what backward needs, and for inference_mode.",
            )
        return composed

    @promise(GRADIENTS)
    def test_adapters_in_the_module_are_run(self) -> None:
        """Wrapped by PEFT, the module runs with its adapters: they change the logits, and all of them get gradients."""
        targets = self.lora_targets or self._find_targets()
        if not targets:
            pytest.skip("no layer that LoRA can wrap; name some in lora_targets")
        config = LoraConfig(target_modules=targets, init_lora_weights=False, r=2)
        try:
            composed = self.compose(lambda module: get_peft_model(module, config).eval())
            batch = composed.batch((3, self.items(300)))
            composed.loss(batch).backward()
            with torch.no_grad():
                adapted = composed.model(**batch).logits
                with composed.encoder.module.disable_adapter():
                    bare = composed.model(**batch).logits
        except Exception as error:
            fail(
                f"{self.name}: wrapped by PEFT, it can't be run: {say(error)}.",
                "The module is then a PeftModel: let callbacks call it, and look at its attributes through "
                "get_base_model(), not at its class.",
            )
        weights = {name: p for name, p in composed.encoder.module.named_parameters() if p.requires_grad}
        silent = [name for name, weight in weights.items() if not _has_gradient(weight)]
        if silent or torch.equal(adapted, bare):
            fail(
                f"{self.name}: with LoRA in {', '.join(targets[:3])}, {len(silent)} of {len(weights)} adapter weights "
                f"get no gradient{''.join(f' ({name}, …)' for name in silent[:1])}, and the logits are "
                f"{'the same as' if torch.equal(adapted, bare) else 'other than'} without it.",
                f"Let {self.module_name}.forward call its layers, self.layer(x), and not compute with "
                "self.layer.weight; let run_module of the callbacks call the module that it is given. Where the class "
                "is not yours, name the layers that it does call in lora_targets.",
            )

    def _find_targets(self) -> list[str]:
        """Layers of the kind that comes first whose weights got gradients, by name."""
        module = unwrap(self._trained.encoder.module)
        layers = [(name, layer) for name, layer in module.named_modules() if name and _has_gradient(_weight(layer))]
        of_kinds = ([name for name, layer in layers if type(layer) is kind] for kind in _WRAPPABLE)
        return next(filter(None, of_kinds), [])

    @promise(GRADIENTS)
    def test_it_runs_in_bfloat16(self) -> None:
        """A model in bfloat16 trains, and its features are close to those in float32."""
        composed = self.fresh()
        composed.model.bfloat16()
        inputs, _ = self.prepare(self.items(400, least=2))
        fix = (
            f"{self.module_name}.forward gets its inputs in the dtype of its weights: keep to it, without .float() and "
            "dtype=torch.float32, or cast back before the next layer; compute positions and times as integers."
        )
        try:
            loss = composed.loss(composed.batch((3, self.items(400, least=2))))
            loss.backward()
            with torch.no_grad():
                features, expected = composed.features(inputs).float(), self.composed.features(inputs)
        except Exception as error:
            fail(f"{self.name}: it doesn't run in bfloat16: {say(error)}.", fix)
        gradients = [p.grad for p in composed.encoder.parameters() if p.grad is not None]
        if not all(map(_is_finite, (loss, features, *gradients))):
            fail(f"{self.name}: in bfloat16 its features or gradients are not finite.", fix)
        difference = float((features - expected).norm() / expected.norm().clamp(min=1e-12))
        if not difference <= self.bf16_tolerance:
            fail(
                f"{self.name}: features in bfloat16 differ from those in float32 by {difference:.1%}, more than "
                f"bf16_tolerance={self.bf16_tolerance:g}.",
                fix,
            )

    @promise(GRADIENTS, DUMMIES)
    def test_a_batch_without_the_modality_trains(self) -> None:
        """Text alone trains, also where other ranks have media: then the module runs on its dummy inputs, for zeros."""
        composed = self.fresh()
        composed.model.set_trainable(encoders={composed.key: (True, True)})
        composed.model.train()
        fix = (
            f"Where several processes train, one whose batch has none of it runs {self.module_name} on "
            f"EncoderSpec.dummy_inputs ({self.provided.spec.dummy_inputs}), in training mode, and adds 0 times its "
            "features to the loss. Make forward run on them and give finite features (an epsilon where it divides), or "
            "let dummy_inputs return others, such as larger ones."
        )
        try:
            loss = composed.loss(composed.batch((5, []), (3, [])))
            idle = idle_output(composed.encoder)
            (loss + idle).backward()
        except Exception as error:
            fail(f"{self.name}: a batch of text alone can't be trained on: {say(error)}.", fix)
        names = [name for name, p in composed.encoder.named_parameters() if not _is_finite(p.grad)]
        if not _is_finite(loss + idle) or names:
            found = f"gradients of {', '.join(names[:3])}" if names else "the loss"
            fail(f"{self.name}: on a batch of text alone {found} would be NaN or infinite.", fix)


def _weight(layer: nn.Module) -> Any:
    weight = getattr(layer, "weight", None)
    return weight if isinstance(weight, nn.Parameter) else None


def _has_gradient(weight: Any) -> bool:
    return weight is not None and weight.grad is not None and bool(weight.grad.any())


def _is_finite(value: torch.Tensor | None) -> bool:
    return value is None or bool(torch.isfinite(value).all())


@torch.no_grad()
def _matters(weight: nn.Parameter, features: Callable[[], torch.Tensor]) -> bool:
    """Whether the features change when a weight does."""
    if not weight.is_floating_point():
        return False
    before, kept = features(), weight.clone()
    with seeded(3):
        weight.add_(torch.randn_like(weight))
    after = features()
    weight.copy_(kept)
    return distance(after, before) > 1e-3
