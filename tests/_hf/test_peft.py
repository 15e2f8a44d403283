"""A PEFT wrapper is seen through, and PEFT is not imported to find out that there is none."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import tiny
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model

from cornstarch_core._hf.peft import is_peft, unwrap


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
        IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    ],
    ids=lambda config: type(config).__name__,
)
def test_the_model_inside_any_wrapper_is_the_very_object(config):
    """Adapters inside the layers and prompts around the model are wrapped alike."""
    llama = tiny.llama()
    wrapped = get_peft_model(llama, config)
    assert is_peft(wrapped)
    assert unwrap(wrapped) is llama


def test_what_is_not_wrapped_stays_as_it_is():
    """A model, a plain module and ``None`` come back unchanged."""
    for module in (tiny.clip(), tiny.ToyEncoder(), None):
        assert not is_peft(module)
        assert unwrap(module) is module


def test_the_signature_of_the_model_inside_is_the_real_one():
    """The wrapper's own ``forward`` names no input, so looking at it would lose them."""
    wrapped = get_peft_model(tiny.clip(), LoraConfig(target_modules=["q_proj"]))
    assert "pixel_values" not in inspect.signature(wrapped.forward).parameters
    assert "pixel_values" in inspect.signature(unwrap(wrapped).forward).parameters


def test_peft_is_not_imported():
    """As long as nobody has imported PEFT, no module is wrapped by it."""
    code = (
        "import sys\nfrom cornstarch_core._hf.peft import is_peft, unwrap\n"
        "assert not is_peft(3) and unwrap(3) == 3\nassert not {'peft', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
