"""Train models to answer questions about time series, with encoders of a third-party plugin.

    pip install -e examples/cornstarch-timeseries
    python examples/timeseries.py        trains, generates, and writes runs/timeseries/ (about two minutes on two cores)

Two models are composed, each of a small Llama and an encoder of cornstarch-timeseries: PatchTST, which takes series of
one length, and SeriesConvEncoder, a plain ``nn.Module`` that takes series of any length. Both models learn to say
whether a series rises or falls, when it peaks, and how long its waves are.

All parts start from random weights, so nothing is downloaded.
"""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from cornstarch_timeseries.conv import SeriesConvConfig, SeriesConvEncoder
from timeseries_data import ANSWERS, QUESTIONS, Exercise, Exercises
from timeseries_report import draw_report
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PatchTSTConfig, PatchTSTModel, PreTrainedTokenizerFast

from cornstarch_core import (
    ModalEncoderModule,
    MultimodalCollator,
    MultimodalModel,
    MultimodalProcessor,
    MultimodalProjector,
    MultimodalProjectorConfig,
)

FOLDER = Path("runs/timeseries")
SEED = 0
WIDTH = 64
LENGTHS = {"patchtst": (64, 64), "conv": (48, 96)}  # steps of a series; PatchTST takes only one length
STEPS, BATCH, HELD_OUT, SAMPLE = 600, 48, 600, 100
CHAT = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer for the words of these conversations."""
    special = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>"]
    words = [word for text in QUESTIONS.values() for word in text.split()]
    answers = [word for some in ANSWERS.values() for word in some]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *words, *answers]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        extra_special_tokens=special[3:],
    )


def make_patchtst() -> ModalEncoderModule:
    """Make a PatchTST that encodes 64 values as 15 tokens."""
    patchtst = PatchTSTModel(
        PatchTSTConfig(
            context_length=64,
            patch_length=8,
            patch_stride=4,
            d_model=WIDTH,
            ffn_dim=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            norm_type="layernorm",  # the default is a batch norm: with it, features depend on the batch during training
            init_std=0.1,  # the default for initial weights, here and below, suits models ten times as wide
        )
    )
    return ModalEncoderModule(patchtst, callbacks="series")


def make_conv() -> ModalEncoderModule:
    """Make the plugin's own encoder, with a projector that makes one token of two patches."""
    conv = SeriesConvEncoder(SeriesConvConfig(patch_length=4, hidden_size=WIDTH, num_layers=3))
    projector = MultimodalProjectorConfig(
        projection_type="patch_merge", merge_factor=2, in_features=WIDTH, out_features=WIDTH
    )
    return ModalEncoderModule(conv, MultimodalProjector(projector))


ENCODERS = {"patchtst": make_patchtst, "conv": make_conv}


def compose_model(name: str, tokenizer: PreTrainedTokenizerFast) -> MultimodalModel:
    """Compose an encoder and a small Llama; composing creates the projector of PatchTST."""
    torch.manual_seed(SEED)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.1,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    return MultimodalModel(encoders={"series": ENCODERS[name]()}, language_model=llama, init_projector_type="mlp")


def conversation(exercise: Exercise) -> list[dict]:
    """Make the user's message: a series and the question about it."""
    content = [{"type": "series", "series": exercise.series}, {"type": "text", "text": exercise.question}]
    return [{"role": "user", "content": content}]


def make_batch(collator: MultimodalCollator, exercises: list[Exercise]) -> dict:
    """Make a training batch of the questions with their answers."""
    return collator([[*conversation(one), {"role": "assistant", "content": one.answer}] for one in exercises])


def train(name: str, model: MultimodalModel, processor: MultimodalProcessor) -> list[float]:
    """Train with plain PyTorch: exercises made on demand, an optimizer and a loop. Return the loss of each step."""
    loader = DataLoader(
        Exercises(STEPS * BATCH, LENGTHS[name], SEED),
        BATCH,
        num_workers=1,  # prepares batches on the second core
        collate_fn=partial(make_batch, MultimodalCollator(processor, train_on="assistant")),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=len(loader))
    losses = []
    model.train()
    with tqdm(loader, desc=f"{name}: training", unit="step") as bar:
        for batch in bar:
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    return losses


def answer(name: str, model: MultimodalModel, processor: MultimodalProcessor, exercises: list[Exercise]) -> list[str]:
    """Generate an answer to each exercise, in batches."""
    model.eval()
    answers = []
    for start in tqdm(range(0, len(exercises), SAMPLE), desc=f"{name}: answering", unit="batch"):
        inputs = processor.apply_chat_template(
            [conversation(exercise) for exercise in exercises[start : start + SAMPLE]],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
        ids = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        answers += processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def held_out(name: str) -> list[Exercise]:
    """The held-out exercises of a model."""
    return list(Exercises(HELD_OUT, LENGTHS[name], SEED, held_out=True))


def accuracies(exercises: list[Exercise], answers: list[str]) -> dict[str, float]:
    """The share of right answers to each kind of question."""
    right = {kind: [] for kind in QUESTIONS}
    for exercise, said in zip(exercises, answers, strict=True):
        right[exercise.kind].append(exercise.answer == said)
    return {kind: sum(some) / len(some) for kind, some in right.items()}


def run(name: str, tokenizer: PreTrainedTokenizerFast) -> dict:
    """Train one model, save it, and evaluate it on held-out series and on blank ones."""
    model = compose_model(name, tokenizer)
    processor = MultimodalProcessor(tokenizer=tokenizer, model=model, chat_template=CHAT)
    losses = train(name, model, processor)
    exercises = held_out(name)
    answers = answer(name, model, processor, exercises)
    blank = answer(name, model, processor, [exercise.blanked() for exercise in exercises])
    model.save_pretrained(FOLDER / name)
    processor.save_pretrained(FOLDER / name)
    return {
        "losses": losses,
        "exercises": exercises,
        "answers": answers,
        "accuracy": accuracies(exercises, answers),
        "blank": accuracies(exercises, blank),
    }


def main() -> None:
    """Train and evaluate both models, save them, and check in a new process that they give the same answers."""
    start, tokenizer = time.perf_counter(), make_tokenizer()
    runs = {name: run(name, tokenizer) for name in ENCODERS}
    (FOLDER / "answers.json").write_text(json.dumps({name: one["answers"] for name, one in runs.items()}))
    reloaded_equal = subprocess.run([sys.executable, __file__, "--check"], check=False).returncode == 0
    metrics = {
        "models": {name: {"accuracy": one["accuracy"], "blank": one["blank"]} for name, one in runs.items()},
        "reloaded_equal": reloaded_equal,
        "held_out": HELD_OUT,
        "steps": STEPS,
        "seed": SEED,
        "seconds": round(time.perf_counter() - start),
    }
    (FOLDER / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    draw_report(FOLDER / "report.png", runs)
    for name, one in runs.items():
        for kind, share in one["accuracy"].items():
            print(f"{name}: {kind} {share:.1%}, with a blank series {one['blank'][kind]:.1%}")
    print(f"the saved models give the same answers: {reloaded_equal}; look at {FOLDER / 'report.png'}")


def check() -> None:
    """Load the saved models in this new process, and exit with 0 if they give the same answers."""
    expected = json.loads((FOLDER / "answers.json").read_text())
    for name, answers in expected.items():
        model = MultimodalModel.from_pretrained(FOLDER / name)
        processor = MultimodalProcessor.from_pretrained(FOLDER / name)
        if answer(name, model, processor, held_out(name)) != answers:
            sys.exit(f"{name}: the saved model gives other answers")


if __name__ == "__main__":
    torch.set_num_threads(1)  # more threads don't speed up models this small
    check() if "--check" in sys.argv else main()
