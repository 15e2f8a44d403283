"""Two ranks with different modalities: no hang, and the gradients of a single process with the whole batch."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import two_modalities

from cornstarch_core import ModalCallbacks, ModalEncoderModule, MultimodalModel
from cornstarch_core.distributed import idle_output, must_run
from cornstarch_core.errors import CompositionError

WATCHDOG = 240  # seconds for all mixes; one that hangs is killed, and fails


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def gradients(request, tmp_path_factory) -> tuple[str, Path]:
    """What two processes left, for every mix."""
    folder = tmp_path_factory.mktemp(request.param)
    script = Path(__file__).with_name("ranks.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, script, request.param, folder, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=WATCHDOG)[0].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(text[-3000:] for text in said)
    return request.param, folder


@pytest.mark.parametrize("mix", two_modalities.MIXES)
def test_gradients_are_those_of_the_whole_batch(mix, gradients):
    """Whatever the ranks have: all of it, one text only, all text only, one sight and the other sound."""
    kind, folder = gradients
    model = two_modalities.compose()
    model.train()
    batches = [two_modalities.make_batch(model, share) for share in mix.split("|")]
    learned = sum(map(two_modalities.learned, batches))
    for batch in batches:
        model(**batch, num_items_in_batch=learned).loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    for rank in range(2):
        given = torch.load(folder / f"{kind}-{mix.replace('|', '_')}-{rank}.pt")
        assert given.keys() == {name for name in expected if "embed_positions" not in name}
        for name, gradient in given.items():
            whole = expected[name] if expected[name] is not None else torch.zeros_like(gradient)
            torch.testing.assert_close(gradient, whole, atol=1e-6, rtol=1e-5, msg=f"{mix}, rank {rank}: {name}")


def test_one_process_runs_nothing_for_nothing(mllm):
    """Without other ranks an absent modality costs nothing, and its weights get no gradient."""
    mllm.train()
    mllm(**tiny.prompt(0)).loss.backward()
    assert not must_run(mllm.vision_encoder)
    assert mllm.vision_encoder.runs == 0
    assert mllm.vision_encoder.projector.projection.weight.grad is None


def test_the_idle_output_is_a_zero_that_depends_on_every_weight(mllm):
    """So gradients are zeros, and not missing."""
    output = idle_output(mllm.vision_encoder)
    assert output == 0
    output.backward()
    for name, parameter in mllm.vision_encoder.named_parameters():
        assert "post_layernorm" in name or not parameter.grad.any(), name


@pytest.mark.parametrize("callbacks", [None, "llava", "llava-next"])
def test_registered_callbacks_run_on_dummy_inputs(callbacks):
    """Those of LLaVA-NeXT bring the sizes that they read."""
    model = MultimodalModel(
        encoders={"vision": ModalEncoderModule(tiny.clip(), callbacks=callbacks)}, language_model=tiny.llama()
    )
    assert idle_output(model.vision_encoder) == 0


def test_ready_made_embeddings_have_dummies_too():
    """A single token of zeros; and the model can be sent to the processes that train it."""
    model = MultimodalModel(encoders={"eeg": ModalEncoderModule(None, hidden_size=32)}, language_model=tiny.llama())
    assert idle_output(model.eeg_encoder) == 0
    assert idle_output(pickle.loads(pickle.dumps(model)).eeg_encoder) == 0


def test_an_encoder_of_ones_own_says_what_its_dummies_are():
    """Or the error says how to."""
    encoder = ModalEncoderModule(tiny.ToyEncoder(), hidden_size=32, input_names="signal")
    MultimodalModel(encoders={"eeg": encoder}, language_model=tiny.llama())
    with pytest.raises(
        CompositionError, match=r"eeg: this rank has a batch without any.*ModalCallbacks\(dummy_inputs=f\)"
    ):
        idle_output(encoder)
    callbacks = ModalCallbacks(dummy_inputs=lambda inputs: {"signal": torch.zeros(1, 2, 5)})
    encoder = ModalEncoderModule(tiny.ToyEncoder(), hidden_size=32, input_names="signal", callbacks=callbacks)
    MultimodalModel(encoders={"eeg": encoder}, language_model=tiny.llama())
    assert idle_output(encoder) == 0
