"""Train a model to recognise telephone keys from audio, and to compare a key with the digit in an image.

    python examples/keypad.py            trains, generates, and writes runs/keypad/ (under five minutes on two cores)

A small Whisper encoder for audio, a small ViT for images and a small Llama are composed into one model, which learns
three tasks at once: to write down a dialled number, to read a scanned digit, and to say whether the two are the same.

All parts start from random weights, so nothing is downloaded. To start from pretrained models, load them with
``MultimodalModel.compose(language_model="...", encoders={"audio": "...", "vision": "..."})``.
"""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from keypad_report import draw_report
from keypad_sounds import COMPARE, DIGITS, RATE, READ, WRITE, Exercise, Numbers, Pairs, Scans
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import ConcatDataset, DataLoader
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, ViTConfig, ViTModel, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from cornstarch_core import (
    ModalEncoderModule,
    MultimodalCollator,
    MultimodalModel,
    MultimodalProcessor,
    MultimodalProjector,
    MultimodalProjectorConfig,
)

FOLDER = Path("runs/keypad")
SEED = 0
WIDTH = 64
STEPS, BATCH, HELD_OUT, SAMPLE = 1200, 36, 400, 100
CHAT = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer for the words of these conversations."""
    special = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>"]
    words = f"{WRITE} {READ} {COMPARE} yes no".split()
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *words, *DIGITS]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        extra_special_tokens=special[3:],
    )


def make_audio_encoder() -> ModalEncoderModule:
    """Make a Whisper encoder for windows of one second (50 frames), and a projector that merges two frames."""
    whisper = WhisperEncoder(
        WhisperConfig(
            max_source_positions=50,
            d_model=WIDTH,
            encoder_layers=1,
            encoder_attention_heads=4,
            encoder_ffn_dim=2 * WIDTH,
            init_std=0.1,  # the default for initial weights, here and below, suits models ten times as wide
        )
    )
    projector = MultimodalProjectorConfig(
        projection_type="frame_stack", stack_factor=2, in_features=WIDTH, out_features=WIDTH
    )
    return ModalEncoderModule(whisper, MultimodalProjector(projector), callbacks="audio")


def make_vision_encoder() -> ModalEncoderModule:
    """Make a ViT that divides a scan of 8 x 8 pixels into four patches."""
    vit = ViTModel(
        ViTConfig(
            image_size=8,
            patch_size=4,
            num_channels=1,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.1,
        ),
        add_pooling_layer=False,
    )
    return ModalEncoderModule(vit)


def compose_model(tokenizer: PreTrainedTokenizerFast) -> MultimodalModel:
    """Compose both encoders and a small Llama; composing creates the projector of the ViT."""
    torch.manual_seed(SEED)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            initializer_range=0.1,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    encoders = {"audio": make_audio_encoder(), "vision": make_vision_encoder()}
    return MultimodalModel(encoders=encoders, language_model=llama, init_projector_type="mlp")


def conversation(exercise: Exercise) -> list[dict]:
    """Make the user's message: a scan, an audio clip or both, and the question about them."""
    content = []
    if exercise.scan is not None:
        content.append({"type": "image", "image": exercise.scan})
    if exercise.sound is not None:
        content.append({"type": "audio", "audio": {"array": exercise.sound, "sampling_rate": RATE}})
    return [{"role": "user", "content": [*content, {"type": "text", "text": exercise.question}]}]


def make_batch(collator: MultimodalCollator, exercises: list[Exercise]) -> dict:
    """Make a training batch of the questions with their answers."""
    return collator([[*conversation(one), {"role": "assistant", "content": one.answer}] for one in exercises])


def train(model: MultimodalModel, processor: MultimodalProcessor) -> list[float]:
    """Train with plain PyTorch: exercises made on demand, an optimizer and a loop. Return the loss of each step."""
    size = STEPS * BATCH // 3
    loader = DataLoader(
        ConcatDataset([Numbers(size, SEED), Scans(size, SEED), Pairs(size, SEED)]),
        BATCH,
        shuffle=True,
        num_workers=1,  # prepares batches on the second core
        collate_fn=partial(make_batch, MultimodalCollator(processor, train_on="assistant")),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=len(loader))
    losses = []
    model.train()
    with tqdm(loader, desc="training", unit="step") as bar:
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


def answer(model: MultimodalModel, processor: MultimodalProcessor, exercises: list[Exercise]) -> list[str]:
    """Generate an answer to each exercise, in batches."""
    model.eval()
    answers = []
    for start in tqdm(range(0, len(exercises), SAMPLE), desc="answering", unit="batch"):
        inputs = processor.apply_chat_template(
            [conversation(exercise) for exercise in exercises[start : start + SAMPLE]],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )  # fmt: skip
        ids = model.generate(**inputs, max_new_tokens=9, do_sample=False)
        answers += processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def held_out() -> dict[str, list[Exercise]]:
    """The held-out exercises; a pair with a blank scan or with silence can only be guessed."""
    pairs = list(Pairs(HELD_OUT, SEED, held_out=True))
    return {
        "number": list(Numbers(HELD_OUT, SEED, held_out=True)),
        "scan": list(Scans(HELD_OUT, SEED, held_out=True)),
        "pair": pairs,
        "pair_without_scan": [pair.without_scan() for pair in pairs],
        "pair_without_sound": [pair.without_sound() for pair in pairs],
    }


def accuracy(exercises: list[Exercise], answers: list[str]) -> float:
    """The share of answers that are right in every word."""
    return sum(one.answer == said for one, said in zip(exercises, answers, strict=True)) / len(exercises)


def main() -> None:
    """Train, evaluate, save, and check in a new process that the saved model gives the same answers."""
    tokenizer = make_tokenizer()
    model = compose_model(tokenizer)
    processor = MultimodalProcessor(tokenizer=tokenizer, model=model, chat_template=CHAT)
    losses = train(model, processor)
    exercises = held_out()
    answers = {name: answer(model, processor, some) for name, some in exercises.items()}
    model.save_pretrained(FOLDER / "model")
    processor.save_pretrained(FOLDER / "model")
    (FOLDER / "answers.json").write_text(json.dumps(answers))
    reloaded_equal = subprocess.run([sys.executable, __file__, "--check"], check=False).returncode == 0
    accuracies = {f"{name}_accuracy": accuracy(exercises[name], said) for name, said in answers.items()}
    metrics = {**accuracies, "reloaded_equal": reloaded_equal, "held_out": HELD_OUT, "steps": len(losses), "seed": SEED}
    (FOLDER / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    draw_report(FOLDER / "report.png", losses, exercises, answers, accuracies)
    print(f"{metrics['number_accuracy']:.1%} of {HELD_OUT} held-out numbers are written without a mistake;")
    print(f"{metrics['pair_accuracy']:.1%} of {HELD_OUT} held-out pairs are compared correctly,")
    print(f"{metrics['pair_without_scan_accuracy']:.1%} with a blank scan, ", end="")
    print(f"{metrics['pair_without_sound_accuracy']:.1%} with silence;")
    print(f"the saved model gives the same answers: {reloaded_equal}")
    print(f"look at {FOLDER / 'report.png'}")


def check() -> None:
    """Load the saved model in this new process, and exit with 0 if it gives the same answers."""
    model = MultimodalModel.from_pretrained(FOLDER / "model")
    processor = MultimodalProcessor.from_pretrained(FOLDER / "model")
    exercises, answers = held_out(), json.loads((FOLDER / "answers.json").read_text())
    sys.exit(any(answer(model, processor, exercises[name]) != answers[name] for name in ("number", "pair")))


if __name__ == "__main__":
    torch.set_num_threads(1)  # more threads don't speed up models this small
    check() if "--check" in sys.argv else main()
