"""The examples of the documentation page that this project implements, with small models instead of downloads."""

from __future__ import annotations

from functools import partial

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel, ViTConfig, ViTModel
from transformers.modeling_outputs import BaseModelOutput, ModelOutput

from cornstarch_core import ModalEncoderModule, MultimodalModel, MultimodalProjector, MultimodalProjectorConfig


def vit() -> ViTModel:
    """Make a ViT that gives 17 features of width 32 for an image."""
    return ViTModel(ViTConfig(**tiny.VISION)).eval()


def mistral() -> MistralForCausalLM:
    """Make a Mistral with the width of the tiny Llama."""
    settings = {name: getattr(tiny.llama().config, name) for name in ("vocab_size", "hidden_size", "intermediate_size")}
    return MistralForCausalLM(
        MistralConfig(**settings, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2)
    ).eval()


def runs(mllm: MultimodalModel, features: int, **extra: object) -> bool:
    """Whether a model trains a step and generates."""
    mllm.set_modality_token_ids({"vision": tiny.IMAGE_TOKEN})
    batch = tiny.prompt(1, tokens=features)
    inputs = {"vision": {"pixel_values": tiny.pixels(1), **extra}}
    loss = mllm(**batch, encoder_inputs=inputs).loss
    loss.backward()
    batch.pop("labels")
    ids = mllm.generate(**batch, encoder_inputs=inputs, max_new_tokens=2, min_new_tokens=2, pad_token_id=0)
    return bool(loss.isfinite()) and ids.shape[1] == batch["input_ids"].shape[1] + 2


def test_a_vit_and_a_llama_make_a_multimodal_llm():
    """The model has the given parts as language_model and vision_encoder.module, trains and generates."""
    llm = tiny.llama()
    vision_encoder = vit()
    mllm = MultimodalModel(
        encoders={
            "vision": ModalEncoderModule(vision_encoder),
        },
        language_model=llm,
    )
    assert mllm.language_model is llm
    assert mllm.vision_encoder.module is vision_encoder
    assert runs(mllm, 17)


def test_each_encoder_has_a_module_and_a_projector():
    """Encoders are a dictionary by modality, and the parts have the classes that the page shows."""
    mllm = MultimodalModel(
        encoders={key: ModalEncoderModule(vit()) for key in ("vision", "audio", "whatever")},
        language_model=tiny.llama(),
    )
    assert list(mllm.encoders) == ["vision", "audio", "whatever"]
    assert isinstance(mllm.language_model, PreTrainedModel)
    for key in mllm.encoders:
        encoder = getattr(mllm, f"{key}_encoder")
        assert isinstance(encoder, ModalEncoderModule)
        assert isinstance(encoder.module, PreTrainedModel)
        assert isinstance(encoder.projector, MultimodalProjector)


def test_a_projector_wraps_a_given_module():
    """MultimodalProjector uses the given module as its projection."""
    my_projector_module = nn.Sequential(nn.Linear(32, 64), nn.ReLU())
    your_config = MultimodalProjectorConfig(in_features=32, out_features=64)
    wrapped_projector_module = MultimodalProjector(your_config, my_projector_module)
    encoder = ModalEncoderModule(module=vit(), projector=wrapped_projector_module)
    assert isinstance(wrapped_projector_module, PreTrainedModel)
    assert wrapped_projector_module.projection is my_projector_module
    assert runs(MultimodalModel(encoders={"vision": encoder}, language_model=tiny.llama()), 17)


@pytest.mark.parametrize("given", [{}, {"projector": None}])
def test_composing_creates_missing_projectors(given):
    """A ModalEncoderModule without a projector gets a linear one when a model is composed."""
    encoder = ModalEncoderModule(module=vit(), **given)
    assert encoder.projector is None
    mllm = MultimodalModel(encoders={"vision": encoder}, language_model=tiny.llama())
    assert isinstance(mllm.vision_encoder.projector.projection, nn.Linear)


@pytest.mark.parametrize(("kind", "layers"), [("linear", 1), ("mlp", 2)])
def test_linear_and_mlp_projectors_have_their_layers(kind, layers):
    """A linear projector has one nn.Linear; an mlp has two, with the activation between them."""
    mllm = MultimodalModel(
        encoders={"vision": ModalEncoderModule(vit())},
        language_model=tiny.llama(),
        init_projector_type=kind,
        init_activation="relu",
    )
    modules = list(mllm.vision_encoder.projector.modules())
    assert sum(isinstance(module, nn.Linear) for module in modules) == layers
    assert sum(isinstance(module, nn.ReLU) for module in modules) == layers - 1


def test_a_language_model_may_be_wrapped_by_peft():
    """A model composed with a PEFT-wrapped language model keeps the wrapper, trains and generates."""
    llm = tiny.llama()
    peft_config = LoraConfig(task_type=TaskType.CAUSAL_LM, inference_mode=False)
    llm = get_peft_model(llm, peft_config)
    mllm = MultimodalModel(encoders={"vision": ModalEncoderModule(vit())}, language_model=llm)
    assert isinstance(mllm.language_model, PeftModel)
    assert runs(mllm, 17)


def test_callbacks_run_in_order():
    """The three callbacks run before the module, after the module, and after the projector."""
    order = []

    def preprocess_vision_callback(inputs):
        order.append("preprocess")
        return inputs

    def postprocess_vision_callback(inputs, output):
        order.append("module")
        return output

    def postprocess_projector_callback(inputs, output):
        order.append("projector")
        return output

    vision_encoder = vit()
    vision_projector = MultimodalProjector(MultimodalProjectorConfig(in_features=32, out_features=64))
    encoder = ModalEncoderModule(
        model=vision_encoder,
        projector=vision_projector,
        preprocess_callback=preprocess_vision_callback,
        postprocess_module_callback=postprocess_vision_callback,
        postprocess_projector_callback=postprocess_projector_callback,
    )
    mllm = MultimodalModel(encoders={"vision": encoder}, language_model=tiny.llama())
    mllm.vision_encoder(pixel_values=tiny.pixels(1))
    assert order == ["preprocess", "module", "projector"]


class PostprocessProjector(nn.Module):
    """The page's LLaVA-Next callback; it takes the sizes from ``inputs`` and holds the newline itself."""

    def __init__(self, strategy: str | None = None):
        super().__init__()
        self.vision_feature_select_strategy = strategy
        self.image_newline = nn.Parameter(torch.ones(64))

    def forward(self, inputs: dict, output: BaseModelOutput | tuple) -> BaseModelOutput | tuple:
        """Pack the features of every image, with a newline after each row."""
        pixel_values = inputs.get("pixel_values")
        if pixel_values is not None and pixel_values.size(0) > 0:
            # output[0] == output.last_hidden_state
            image_features = output[0]
            image_features, _ = pack_image_features(
                image_features,
                inputs["image_sizes"],
                vision_feature_select_strategy=self.vision_feature_select_strategy,
                image_newline=self.image_newline,
            )
            # replace output hidden state with postprocessed results
            if isinstance(output, ModelOutput):
                output.last_hidden_state = image_features
            else:
                output = (image_features, *output[1:])
        return output


def pack_image_features(features, image_sizes, vision_feature_select_strategy, image_newline):
    """Append a newline to each row of an image, in place of the page's function."""
    if vision_feature_select_strategy == "default":
        features = features[:, 1:]
    packed = [
        torch.cat([item.unflatten(0, (rows, -1)), image_newline.expand(rows, 1, -1)], dim=1).flatten(0, 1)
        for item, (rows, _) in zip(features, image_sizes, strict=True)
    ]
    return packed, [len(item) for item in packed]


@pytest.mark.parametrize(
    ("encoder", "language_model", "strategy"),
    [(tiny.clip, mistral, "default"), (tiny.siglip, tiny.llama, None)],
    ids=["CLIP+Mistral", "SigLIP+Llama"],
)
def test_llava_next_for_any_combination(encoder, language_model, strategy):
    """The same callback works for CLIP with Mistral and for SigLIP with Llama, and its newline trains."""
    callback = PostprocessProjector(strategy)
    mllm = MultimodalModel(
        encoders={
            "vision": ModalEncoderModule(
                model=encoder(),
                postprocess_projector_callback=callback,
            )
        },
        language_model=language_model(),
    )
    assert runs(mllm, 4 * (4 + 1), image_sizes=[(4, 4)])
    assert callback.image_newline.grad.abs().sum() > 0


def test_a_callback_may_be_a_function_with_bound_settings():
    """functools.partial binds the page's strategy argument to a callback function."""

    def postprocess_projector_callback(inputs, output, vision_feature_select_strategy=None):
        if vision_feature_select_strategy == "default":
            output.last_hidden_state = output[0][:, 1:]
        return output

    encoder = ModalEncoderModule(
        model=tiny.clip(),
        postprocess_projector_callback=partial(
            postprocess_projector_callback, vision_feature_select_strategy="default"
        ),
    )
    llama = tiny.llama()
    assert isinstance(llama, LlamaForCausalLM)
    assert runs(MultimodalModel(encoders={"vision": encoder}, language_model=llama), 16)
