"""One training run by a trainer of another library: python training_run.py TRAINER FOLDER [KILL]; see training/test_resume.py.

TRAINER is ``trainer`` or ``sft``. The run resumes from the last complete checkpoint in FOLDER, if there is one. KILL says
where it kills itself: ``step:N`` in the middle of step N, ``save:N:FILE`` while the checkpoint of step N is saved, when
half of FILE is written. The run appends the loss of every step to FOLDER/losses.jsonl.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent))

import sounds
import two_modalities
import words

from cornstarch_core import MultimodalCollator, MultimodalModel, MultimodalProcessor
from cornstarch_core.training import last_checkpoint, parameter_groups

STEPS, SAVE_EVERY = 9, 3


def compose() -> MultimodalModel:
    """A model for images and audio with LoRA. Its dropout draws random numbers, which a resumed run has to draw, too."""
    model = two_modalities.compose()
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.2, task_type="CAUSAL_LM")
    torch.manual_seed(3)
    model.language_model = get_peft_model(model.language_model, lora)
    model.set_trainable(encoders={"vision": (False, True), "audio": (False, True)})
    return model


def rows() -> list[dict[str, Any]]:
    """Conversations about an image, an audio clip or neither, with the media in separate columns."""
    return [row(kind, seed) for seed, kind in enumerate("vatvatvatvat")]


def row(kind: str, seed: int) -> dict[str, Any]:
    """One conversation; answers differ in length."""
    media = {"v": [{"type": "image"}], "a": [{"type": "audio"}], "t": []}[kind]
    answer = {"v": "A cat.", "a": "A dog and a cat, please.", "t": "It is a seven."}[kind]
    return {
        "messages": [
            {"role": "user", "content": [*media, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
        "images": [words.image(seed)] if kind == "v" else [],
        "audio": [sounds.noise(4000 + 1000 * seed, seed)] if kind == "a" else [],
    }


def make_trainer(kind: str, folder: Path, model: MultimodalModel, **settings: Any) -> Trainer:
    """Either trainer, set up as in its own documentation."""
    processor = MultimodalProcessor(tokenizer=words.tokenizer(), model=model, chat_template=words.CHATML)
    data = Dataset.from_list(rows())
    arguments = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_steps": SAVE_EVERY,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "bf16": False,
        "remove_unused_columns": False,
        **settings,
    }
    groups = parameter_groups(model, {"vision": 1e-2, "audio": 1e-2, "language_model": 3e-2})
    given = {
        "train_dataset": data,
        "eval_dataset": data.select(range(4)),
        "data_collator": MultimodalCollator(processor),
        "processing_class": processor,
        "optimizers": (torch.optim.AdamW(groups), None),
    }
    if kind == "trainer":
        return Trainer(model, TrainingArguments(**arguments), **given)
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(model, SFTConfig(gradient_checkpointing=False, **arguments), **given)


class KeepLosses(TrainerCallback):
    """Appends the exact loss of each step to a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write one line for each step."""
        if logs and "loss" in logs:
            with self.file.open("a") as file:
                file.write(json.dumps([state.global_step, float(logs["loss"]).hex()]) + "\n")


def die() -> None:
    """Die as in a power failure: nothing is flushed, nothing is caught."""
    os.kill(os.getpid(), signal.SIGKILL)


class DieInStep(TrainerCallback):
    """Dies between two micro-batches of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Die; the step counter still has the step before."""
        if state.global_step == self.step - 1:
            die()


def die_in_save(step: int, name: str) -> None:
    """Die when half of the file ``name`` in the checkpoint of ``step`` is written."""

    def halved(path: Any) -> None:
        if os.path.basename(path) == name and f"checkpoint-{step}" in path:
            descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
            os.write(descriptor, b'{"half": ')
            os.ftruncate(descriptor, 100)
            die()

    save = torch.save  # opens its file in C++, which audit hooks do not see
    torch.save = lambda value, path, **options: (save(value, path, **options), halved(path))
    sys.addaudithook(lambda event, args: halved(args[0]) if event == "open" and _writes(*args) else None)


def _writes(path: Any, mode: Any, flags: Any) -> bool:
    return isinstance(path, str) and isinstance(mode, str) and "w" in mode


def main(kind: str, folder: str, kill: str | None = None) -> None:
    """Train to the end, or to the step in which the process dies."""
    torch.set_num_threads(1)
    model = compose()
    trainer = make_trainer(kind, Path(folder), model)
    trainer.add_callback(KeepLosses(Path(folder) / "losses.jsonl"))
    if kill is not None and kill.startswith("step:"):
        trainer.add_callback(DieInStep(int(kill.split(":")[1])))
    elif kill is not None:
        _, step, name = kill.split(":")
        die_in_save(int(step), name)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(*sys.argv[1:])
