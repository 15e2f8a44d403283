"""transformers' Trainer and TRL's SFTTrainer train a model for images and audio, from lists, tables and streams."""

from __future__ import annotations

import warnings

import pytest
import torch
import two_modalities
import words
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from cornstarch_core import MultimodalModel, MultimodalProcessor
from cornstarch_core.errors import PlaceholderMismatchError
from cornstarch_core.training import audit

Dataset = pytest.importorskip("datasets").Dataset
runs = pytest.importorskip("training_run")

KINDS = ("trainer", "sft")


@pytest.fixture(autouse=True)
def _quiet():
    """Ignore the deprecation warnings inside the trainers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make(kind, folder, **settings):
    """A trainer that saves no checkpoints."""
    if kind == "sft":
        pytest.importorskip("trl")
    torch.manual_seed(0)
    return runs.make_trainer(kind, folder, runs.compose(), **{"save_strategy": "no", **settings})


def losses(trainer) -> list[float]:
    """The loss of every step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_and_evaluation_shows_it(kind, tmp_path):
    """After thirty steps, the training loss and the evaluation loss of the same samples are lower."""
    trainer = make(kind, tmp_path, max_steps=30, eval_strategy="steps", eval_steps=15)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    found = losses(trainer)
    assert len(found) == 30
    assert found[-1] < 0.95 * found[0]
    assert trainer.evaluate()["eval_loss"] < 0.95 * before
    trained = {name.partition(".")[0] for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained == {"vision_encoder", "audio_encoder", "language_model"}


def test_both_trainers_count_the_same_loss(tmp_path):
    """TRL computes the loss without logits; without dropout it equals the model's own loss."""
    one, other = (make(kind, tmp_path).evaluate()["eval_loss"] for kind in KINDS)
    assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_steps_are_those_of_one_large_batch(kind, tmp_path):
    """Micro-batches with different numbers of learned tokens give the loss and the gradient norm of the whole batch."""
    settings = {"max_steps": 1, "max_grad_norm": 1e9}
    logged = []
    for size, steps in ((4, 1), (2, 2), (1, 4)):
        trainer = make(kind, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps, **settings)
        trainer.model.language_model.peft_config["default"].lora_dropout = 0.0
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer.train()
        logged.append((losses(trainer)[0], trainer.state.log_history[0]["grad_norm"]))
    for loss, norm in logged[1:]:
        assert loss == pytest.approx(logged[0][0], rel=1e-5)
        assert norm == pytest.approx(logged[0][1], rel=1e-4)


def test_the_audit_finds_no_mistakes_after_training(tmp_path):
    """A callback audits the gradients of the last step before the trainer clears them."""
    trainer = make("trainer", tmp_path, max_steps=1, per_device_train_batch_size=12, gradient_accumulation_steps=1)
    found = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            found.append(audit(model))

    trainer.add_callback(Look())
    trainer.train()
    assert found[0].mistakes == ()


@pytest.mark.parametrize("form", ["list", "dataset", "streamed"])
def test_data_in_any_form_makes_the_same_batches(form, tmp_path):
    """A list, a table of ``datasets`` and its stream give the same batch, although absent fields of a table are None."""
    trainer = make("trainer", tmp_path)
    expected = trainer.data_collator(runs.rows())
    table = Dataset.from_list(runs.rows())
    data = {"list": runs.rows(), "dataset": table, "streamed": table.to_iterable_dataset()}[form]
    (batch,) = DataLoader(data, batch_size=12, collate_fn=trainer.data_collator)
    assert words.same(batch["encoder_inputs"]["vision"], expected["encoder_inputs"]["vision"])
    for name in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(batch[name], expected[name])
    sounds = (one["encoder_inputs"]["audio"]["input_features"] for one in (batch, expected))
    torch.testing.assert_close(*sounds, atol=1e-5, rtol=1e-4)  # a table holds audio as float64


@pytest.mark.parametrize("kind", KINDS)
def test_a_streamed_data_set_trains(kind, tmp_path):
    """It needs ``max_steps`` and ``dispatch_batches=False``."""
    trainer = make(kind, tmp_path, max_steps=2, accelerator_config={"dispatch_batches": False})
    trainer.train_dataset = Dataset.from_list(runs.rows()).to_iterable_dataset()
    trainer.train()
    assert len(losses(trainer)) == 2


def test_batches_that_accelerate_splits_are_refused(tmp_path):
    """accelerate splits the tensors of streamed batches by rows; the error says how to prevent it."""
    trainer = make("trainer", tmp_path, max_steps=2)
    trainer.train_dataset = Dataset.from_list(runs.rows()).to_iterable_dataset()
    # an old accelerate (1.10) refuses by itself: a batch holds lengths, which are no tensors
    with pytest.raises((PlaceholderMismatchError, TypeError), match="dispatch_batches|only concatenate tensors"):
        trainer.train()


def test_activation_checkpointing_changes_no_loss(tmp_path):
    """The trainer turns it on for a model with frozen encoders and LoRA."""
    plain, checkpointed = (make("trainer", tmp_path, max_steps=2, gradient_checkpointing=on) for on in (False, True))
    for trainer in (plain, checkpointed):
        trainer.train()
    assert losses(plain)[0] == pytest.approx(losses(checkpointed)[0], rel=1e-6)
    assert losses(plain)[1] == pytest.approx(losses(checkpointed)[1], rel=1e-3)  # Adam amplifies rounding errors


def test_what_a_trainer_saves_can_be_loaded(tmp_path):
    """The folder holds the model and the processor, and the loaded model generates the same tokens."""
    trainer = make("trainer", tmp_path, max_steps=1)
    trainer.train()
    trainer.save_model(tmp_path / "done")
    model = MultimodalModel.from_pretrained(tmp_path / "done").eval()
    processor = MultimodalProcessor.from_pretrained(tmp_path / "done")
    conversation = two_modalities.sample("v", 0)[:1]
    inputs = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True, return_dict=True)
    settings = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **settings), trainer.model.eval().generate(**inputs, **settings))


def test_pushing_uploads_the_model_and_the_processor(tmp_path, monkeypatch):
    """What is uploaded can be loaded again; a folder stands in for the hub."""
    from transformers.utils import hub

    class Folder:
        def __getattr__(self, name):
            return getattr(hub_api, name)

        def create_repo(self, repo_id, **_):
            return type("Url", (), {"repo_id": repo_id, "__str__": lambda self: repo_id})()

        def create_commit(self, repo_id, operations, **_):
            for operation in operations:
                file = tmp_path / repo_id / operation.path_in_repo
                file.parent.mkdir(parents=True, exist_ok=True)
                with operation.as_file() as content:
                    file.write_bytes(content.read())

    hub_api = hub.hf_api() if hasattr(hub, "hf_api") else None
    if hub_api is None:
        pytest.skip("this release of transformers has no hub client to stand in for")
    monkeypatch.setattr(hub, "hf_api", Folder)
    trainer = make("trainer", tmp_path)
    trainer.model.push_to_hub("me/images-and-audio")
    trainer.processing_class.push_to_hub("me/images-and-audio")
    model = MultimodalModel.from_pretrained(tmp_path / "me/images-and-audio")
    processor = MultimodalProcessor.from_pretrained(tmp_path / "me/images-and-audio")
    inputs = processor(text="<vision> a", images=words.image(0))
    assert torch.equal(model(**inputs).logits, trainer.model.eval()(**inputs).logits)
