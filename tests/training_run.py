"""One training run by a trainer of others: python training_run.py TRAINER FOLDER [KILL]; see training/test_resume.py.

TRAINER is ``trainer`` or ``sft``. Goes on from the last whole checkpoint in FOLDER, if there is one. KILL is ``step:N``:
in the middle of step N; or ``save:N:FILE``: while the checkpoint of step N is saved, when FILE of it has been half
written. Leaves the loss of every step that it took in FOLDER/losses.jsonl.
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
    """Sight and sound, and LoRA with dropout: it draws random numbers that a resumed run has to draw, too."""
    model = two_modalities.compose()
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.2, task_type="CAUSAL_LM")
    torch.manual_seed(3)
    model.language_model = get_peft_model(model.language_model, lora)
    model.set_trainable(encoders={"vision": (False, True), "audio": (False, True)})
    return model


def rows() -> list[dict[str, Any]]:
    """Conversations about an image, a sound or neither, with the media in columns beside them."""
    return [row(kind, seed) for seed, kind in enumerate("vatvatvatvat")]


def row(kind: str, seed: int) -> dict[str, Any]:
    """One of them; answers differ in length."""
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
    """Either trainer, as its own documentation would have it."""
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
    """Writes each step's loss down at once, to the bit."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One line a step."""
        if logs and "loss" in logs:
            with self.file.open("a") as file:
                file.write(json.dumps([state.global_step, float(logs["loss"]).hex()]) + "\n")


def die() -> None:
    """As a machine dies: nothing is flushed, nothing is caught."""
    os.kill(os.getpid(), signal.SIGKILL)


class DieInStep(TrainerCallback):
    """Between two micro-batches of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step is counted when it is done."""
        if state.global_step == self.step - 1:
            die()


def die_in_save(step: int, name: str) -> None:
    """Die when half of that file of that checkpoint has been written."""

    def halved(path: Any) -> None:
        if os.path.basename(path) == name and f"checkpoint-{step}" in path:
            descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
            os.write(descriptor, b'{"half": ')
            os.ftruncate(descriptor, 100)
            die()

    save = torch.save  # writes by itself, unseen by audit hooks
    torch.save = lambda value, path, **options: (save(value, path, **options), halved(path))
    sys.addaudithook(lambda event, args: halved(args[0]) if event == "open" and _writes(*args) else None)


def _writes(path: Any, mode: Any, flags: Any) -> bool:
    return isinstance(path, str) and isinstance(mode, str) and "w" in mode


def main(kind: str, folder: str, kill: str | None = None) -> None:
    """Train to the end, or to where it dies."""
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
