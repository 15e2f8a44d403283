"""The ``"llava"`` callback."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from cornstarch_vision.llava import Llava
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cornstarch_core.errors import CompositionError

LAYERS = [0, 1, 3, -1, -2, -3, -5, [-2, -1], [1, -2], [0], [2, 2]]
BLOCKS = 4


def pixels(items=2):
    """The same random images every time."""
    return torch.rand(items, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def whole(model, layer, drop=0, **inputs):
    """The features of a whole run, as transformers reports them."""
    states = model(pixel_values=inputs.pop("pixel_values", pixels()), output_hidden_states=True, **inputs).hidden_states
    layers = [layer] if isinstance(layer, int) else layer
    return torch.cat([states[one][:, drop:] for one in layers], dim=-1)


def select(callbacks, model, **inputs):
    """Steps two and three of an encoder: run, then select."""
    inputs = {"pixel_values": pixels(), **inputs}
    return callbacks.postprocess_module(inputs, callbacks.run_module(model, dict(inputs)))


def count_runs(model, path):
    """A list that grows by the number of a block whenever that block runs."""
    ran = []
    for number, block in enumerate(model.get_submodule(path)):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    return ran


# --- the same features ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@torch.no_grad()
def test_features_equal_those_of_the_whole_run(tiny, context_of, family, layer):
    """Bit-equal for every family and layer, with the prefix and without."""
    model = tiny(family)
    context = context_of(family, model)
    full = Llava().build(context, vision_feature_layer=layer, vision_feature_select_strategy="full")
    default = Llava().build(context, vision_feature_layer=layer)
    assert torch.equal(select(full, model).last_hidden_state, whole(model, layer))
    assert torch.equal(select(default, model).last_hidden_state, whole(model, layer, context.prefix_tokens))


@settings(max_examples=20, deadline=None)
@given(
    layer=st.one_of(st.integers(-5, 4), st.lists(st.integers(-5, 4), min_size=1, max_size=3)),
    size=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    registers=st.integers(0, 3),
)
def test_count_and_width_are_those_of_the_features(tiny, context_of, target, specs, layer, size, registers):
    """For any layers, size and number of registers, and both strategies: the declared numbers are the features'."""
    model = tiny("dinov2_with_registers", num_register_tokens=registers)
    inputs = {"pixel_values": torch.zeros(2, 3, *size)}
    counts = target(specs["dinov2_with_registers"]).num_tokens(model.config, inputs)
    for strategy in ("default", "full"):
        callbacks = Llava().build(context_of("dinov2_with_registers", model), layer, strategy)
        with torch.no_grad():
            features = select(callbacks, model, **inputs).last_hidden_state
        assert callbacks.num_tokens_before_projector(inputs, counts) == [features.shape[1]] * 2
        assert callbacks.hidden_size == features.shape[2]


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("layer", [-2, -1, [-2, 1]], ids=str)
@pytest.mark.parametrize("strategy", ["default", "full"])
@torch.no_grad()
def test_features_equal_those_of_hugging_face(tiny, context_of, tower, layer, strategy):
    """Bit-equal to ``LlavaForConditionalGeneration``; ``drop_tokens=1`` where it drops a patch of SigLIP."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    model = tiny(tower)
    text = LlamaConfig(vocab_size=32, hidden_size=24, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    config = LlavaConfig(
        vision_config=model.config,
        text_config=text,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    theirs = LlavaForConditionalGeneration(config).eval()
    theirs.model.vision_tower.load_state_dict(model.state_dict())
    output = theirs.get_image_features(
        pixels(), vision_feature_layer=layer, vision_feature_select_strategy=strategy, return_dict=True
    )

    options = {"drop_tokens": 1} if tower == "siglip" and strategy == "default" else {}
    ours = select(Llava().build(context_of(tower, model), layer, strategy, **options), model).last_hidden_state
    projected = theirs.model.multi_modal_projector(ours)
    assert torch.equal(projected, torch.stack(list(output.pooler_output)))


@torch.no_grad()
def test_siglip_keeps_all_its_patches(tiny, context_of):
    """SigLIP has no prefix: ``"default"`` drops nothing, unlike Hugging Face's LLaVA, which would drop a patch."""
    model = tiny("siglip")
    assert select(Llava().build(context_of("siglip", model)), model).last_hidden_state.shape == (2, 16, 16)
    assert select(Llava().build(context_of("siglip", model), drop_tokens=1), model).last_hidden_state.shape == (
        2,
        15,
        16,
    )


# --- no more work than needed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "blocks"), [(0, 0), (1, 1), (-1, 4), (-2, 3), (-3, 2), ([-2, -1], 4), ([1, -2], 3)])
@torch.no_grad()
def test_the_encoder_stops_after_the_highest_layer(tiny, context_of, specs, family, layer, blocks):
    """Only the blocks that are needed run, each once, and all of them again in a later whole run."""
    model = tiny(family)
    ran = count_runs(model, specs[family].layers)
    select(Llava().build(context_of(family, model), layer), model)
    assert ran == list(range(blocks))
    ran.clear()
    model(pixel_values=pixels())
    assert ran == list(range(BLOCKS))


def test_nothing_of_the_encoder_is_changed(tiny, context_of, family):
    """Modules, names, weights and hooks are the same objects in the same order as before, also after an error."""
    model = tiny(family)
    before = [(name, id(part)) for name, part in (*model.named_modules(), *model.state_dict(keep_vars=True).items())]
    callbacks = Llava().build(context_of(family, model), -3)
    select(callbacks, model)
    with pytest.raises(Exception, match=r".+"):
        callbacks.run_module(model, {"pixel_values": torch.zeros(1, 2, 32, 32)})
    after = [(name, id(part)) for name, part in (*model.named_modules(), *model.state_dict(keep_vars=True).items())]
    assert after == before


def test_hooks_on_the_encoder_run(tiny, context_of, family):
    """The encoder itself is called, not its parts, so whatever hooks into it works."""
    model = tiny(family)
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append("before"))
    model.register_forward_hook(lambda *_: calls.append("after"))
    select(Llava().build(context_of(family, model)), model)
    assert calls == ["before", "after"]


def test_gradients_equal_those_of_the_whole_run(tiny, context_of, family):
    """Bit-equal for what is used; blocks beyond get none."""
    model, reference = tiny(family), tiny(family)
    select(Llava().build(context_of(family, model), [1, -2]), model).last_hidden_state.square().sum().backward()
    context = context_of(family, reference)
    whole(reference, [1, -2], context.prefix_tokens).square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), name


# --- however the encoder is run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(tiny, context_of, family, reentrant):
    """Features and gradients under activation checkpointing equal those without it.

    The reentrant kind adds up gradients in another order, so there they are equal but for rounding.
    """
    results = []
    for checkpointed in (False, True):
        model = tiny(family).train()
        if family == "dinov3_vit":
            model.rope_embeddings.eval()  # it jitters positions in training
        if checkpointed:
            # its name until transformers 5.17 was the second one
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
        images = pixels().requires_grad_()  # the reentrant kind needs an input that requires gradients
        features = select(
            Llava().build(context_of(family, model), [0, 2]), model, pixel_values=images
        ).last_hidden_state
        features.square().sum().backward()
        results.append([features.detach(), images.grad, *[p.grad for p in model.parameters() if p.grad is not None]])
    tolerance = {"rtol": 1e-3, "atol": 1e-5} if reentrant else {"rtol": 0, "atol": 0}
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(*results, **tolerance)


@torch.no_grad()
def test_bfloat16_is_kept(tiny, context_of, family):
    """Features are the encoder's, in its dtype, bit-equal to the whole run."""
    model = tiny(family).to(torch.bfloat16)
    images = pixels().to(torch.bfloat16)
    ours = select(Llava().build(context_of(family, model), [1, -2]), model, pixel_values=images).last_hidden_state
    assert ours.dtype == torch.bfloat16
    prefix = context_of(family, model).prefix_tokens
    assert torch.equal(ours, whole(model, [1, -2], prefix, pixel_values=images))


@pytest.mark.parametrize("by_config", [False, True])
@torch.no_grad()
def test_tuples_stay_tuples(tiny, context_of, family, by_config):
    """With ``return_dict=False``, given or in the config, the features are the first entry of a tuple."""
    if by_config and family.startswith("dino"):
        pytest.skip("these encoders fail by themselves with return_dict=False in their config")
    model = tiny(family)
    expected = whole(model, -2, context_of(family, model).prefix_tokens)
    if by_config:
        model.config.return_dict = False
    inputs = {} if by_config else {"return_dict": False}
    output = select(Llava().build(context_of(family, model)), model, **inputs)
    assert isinstance(output, tuple)
    assert torch.equal(output[0], expected)


@pytest.mark.parametrize("by_config", [False, True])
@torch.no_grad()
def test_hidden_states_that_are_asked_for_are_complete(tiny, context_of, specs, family, by_config):
    """They are those of the whole run, now and in later runs: transformers installs its recorders only once."""
    model, fresh = tiny(family), tiny(family)
    fresh_states = fresh(pixel_values=pixels(), output_hidden_states=True).hidden_states
    model.config.output_hidden_states = by_config
    inputs = {} if by_config else {"output_hidden_states": True}
    callbacks = Llava().build(context_of(family, model), 1)
    for output in (select(callbacks, model, **inputs), model(pixel_values=pixels(), **inputs)):
        assert len(output.hidden_states) == BLOCKS + 1
        assert all(torch.equal(one, other) for one, other in zip(output.hidden_states, fresh_states, strict=True))
    assert torch.equal(
        select(callbacks, model).last_hidden_state, whole(fresh, 1, context_of(family, fresh).prefix_tokens)
    )


@torch.no_grad()
def test_interpolated_positions_reach_the_encoder(tiny, context_of):
    """Other inputs than pixels are passed on."""
    model = tiny("clip")
    inputs = {"pixel_values": torch.rand(1, 3, 48, 40), "interpolate_pos_encoding": True}
    ours = select(Llava().build(context_of("clip", model)), model, **inputs).last_hidden_state
    assert torch.equal(ours, whole(model, -2, 1, **inputs))
    assert ours.shape == (1, 30, 16)


def wrapped_by_peft(model):
    """LoRA on every query and value projection, with weights that matter."""
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "v_proj", "query", "value"]  # the latter in DINOv2 of transformers 5.17
    return get_peft_model(model, LoraConfig(target_modules=targets, init_lora_weights=False)).eval()


def wrapped_by_data_parallel(model):
    """A wrapper that holds the encoder as ``.module``."""
    return nn.DataParallel(model)


@pytest.mark.parametrize("wrap", [wrapped_by_peft, wrapped_by_data_parallel])
@torch.no_grad()
def test_wrapped_encoders_stop_early_too(tiny, context_of, specs, family, wrap):
    """The blocks are found inside the wrapper, the wrapper is called, and it keeps its names."""
    model = tiny(family)
    wrapped = wrap(model)
    names = [name for name, _ in wrapped.named_modules()]
    ran = count_runs(model, specs[family].layers)
    calls = []
    wrapped.register_forward_hook(lambda *_: calls.append("wrapper"))
    context = context_of(family, model)
    ours = select(Llava().build(context, -3), wrapped).last_hidden_state
    assert (ran, calls) == ([0, 1], ["wrapper"])
    assert torch.equal(ours, whole(model, -3, context.prefix_tokens))
    assert [name for name, _ in wrapped.named_modules()] == names


@torch.no_grad()
def test_threads_do_not_disturb_each_other(tiny, context_of):
    """Many threads with different layers on one encoder: right features, and an encoder that is whole in the end."""
    model = tiny("clip")
    expected = {layer: whole(model, layer, 1) for layer in range(BLOCKS + 1)}
    barrier = threading.Barrier(5)

    @torch.no_grad()
    def run(layer):
        callbacks = Llava().build(context_of("clip", model), layer)
        barrier.wait()
        return all(torch.equal(select(callbacks, model).last_hidden_state, expected[layer]) for _ in range(20))

    with ThreadPoolExecutor(5) as pool:
        assert all(pool.map(run, expected))
    assert len(model.encoder.layers) == BLOCKS


@torch.no_grad()
def test_an_encoder_without_declared_blocks_runs_whole(tiny, context_of, specs):
    """Third-party encoders whose plugin names no blocks work by their hidden states."""
    model = tiny("vit")
    ran = count_runs(model, specs["vit"].layers)
    callbacks = Llava().build(replace(context_of("vit", model), layers=None), [0, -2])
    ours = select(callbacks, model).last_hidden_state
    assert ran == [0, 1, 2, 3]
    assert torch.equal(ours, whole(model, [0, -2], 1))


def test_callbacks_hold_no_state_of_the_encoder(tiny, context_of):
    """They can be pickled, as data loaders with workers and launchers do with what they get."""
    import pickle

    callbacks = pickle.loads(pickle.dumps(Llava().build(context_of("clip", tiny("clip")))))
    assert callbacks.num_tokens_before_projector({}, [17]) == [16]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [5, -6, [-2, 5]])
def test_layers_out_of_range_are_refused(tiny, context_of, layer):
    """When the callback is built, with the valid range."""
    with pytest.raises(CompositionError, match=r"vision_feature_layer=.*has 4 layers, so choose from -5 to 4"):
        Llava().build(context_of("clip", tiny("clip")), layer)


def test_layers_out_of_range_are_refused_without_a_config(tiny, context_of):
    """An encoder without a config is checked when it runs."""
    model = tiny("clip")
    callbacks = Llava().build(replace(context_of("clip", model), config=None), 5)
    with pytest.raises(CompositionError, match="choose from -5 to 4"):
        select(callbacks, model)


@pytest.mark.parametrize("layer", [[], None, "-2", 1.0, True, [True]])
def test_layers_that_are_no_numbers_are_refused(tiny, context_of, layer):
    """The message shows what was given."""
    with pytest.raises(CompositionError, match="expected an integer or a list of them"):
        Llava().build(context_of("clip", tiny("clip")), layer)


def test_an_unknown_strategy_is_refused(tiny, context_of):
    """The message lists the valid ones."""
    with pytest.raises(CompositionError, match=r"'cls'; choose one of default, full"):
        Llava().build(context_of("clip", tiny("clip")), vision_feature_select_strategy="cls")


@pytest.mark.parametrize(("strategy", "drop"), [("full", 1), ("default", -1), ("default", 1.5), ("default", True)])
def test_drop_tokens_that_make_no_sense_are_refused(tiny, context_of, strategy, drop):
    """A number of tokens, and only with the strategy that leaves some out."""
    with pytest.raises(CompositionError, match="drop_tokens="):
        Llava().build(context_of("clip", tiny("clip")), -2, strategy, drop)


def test_a_path_without_blocks_is_refused(tiny, context_of):
    """A plugin that names a wrong path is told so, with the encoder's class."""
    model = tiny("clip")
    callbacks = Llava().build(replace(context_of("clip", model), layers="encoder.blocks"))
    with pytest.raises(CompositionError, match=r"CLIPVisionModel has no list of blocks at 'encoder\.blocks'"):
        select(callbacks, model)
