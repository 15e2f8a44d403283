"""Train a vision-language model, composed of a small ViT and a small Llama, to read handwritten digits.

    python examples/digits.py            trains, generates, and writes runs/digits/ (under three minutes on two cores)

Both models start from random weights, so nothing is downloaded. To start from pretrained models, load them with
``MultimodalModel.compose(language_model="...", encoders={"vision": "..."})``; everything after that stays the same.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from digits_report import draw_report
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, ViTConfig, ViTModel

from cornstarch_core import ModalEncoderModule, MultimodalCollator, MultimodalModel, MultimodalProcessor

FOLDER = Path("runs/digits")
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
QUESTION = "what digit is this ?"
EPOCHS, BATCH = 25, 64
CHAT = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def load_scans():
    """Load 1,797 scans of 8 x 8 pixels as images with the words for them, and hold out 300 of them."""
    digits = load_digits()
    scans = [Image.fromarray((scan * 255 / 16).astype("uint8")) for scan in digits.images]
    words = [WORDS[digit] for digit in digits.target]
    return train_test_split(scans, words, test_size=300, random_state=0, stratify=words)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer for the words of this conversation."""
    special = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>"]
    vocabulary = {word: i for i, word in enumerate([*special, *QUESTION.split(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        extra_special_tokens=special[3:],
    )


def compose_model(tokenizer: PreTrainedTokenizerFast) -> MultimodalModel:
    """Compose a small ViT and a small Llama; composing creates the projector between them."""
    torch.manual_seed(0)
    vit = ViTModel(
        ViTConfig(
            image_size=8,
            patch_size=2,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
        ),
        add_pooling_layer=False,
    )
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    return MultimodalModel(
        encoders={"vision": ModalEncoderModule(vit)}, language_model=llama, init_projector_type="mlp"
    )


def conversation(scan: Image.Image, answer: str | None = None) -> list[dict]:
    """Make a conversation: the question about a scan, and the answer if it is given."""
    messages = [{"role": "user", "content": [{"type": "image", "image": scan}, {"type": "text", "text": QUESTION}]}]
    return messages if answer is None else [*messages, {"role": "assistant", "content": answer}]


def train(model: MultimodalModel, processor: MultimodalProcessor, scans: list, words: list) -> list[float]:
    """Train with plain PyTorch: a data loader, an optimizer and a loop. Return the loss of each step."""
    samples = [conversation(scan, word) for scan, word in zip(scans, words, strict=True)]
    loader = DataLoader(samples, BATCH, shuffle=True, collate_fn=MultimodalCollator(processor, train_on="assistant"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=EPOCHS * len(loader))
    losses = []
    model.train()
    with tqdm(total=EPOCHS * len(loader), desc="training", unit="step") as bar:
        for _ in range(EPOCHS):
            for batch in loader:
                loss = model(**batch).loss
                loss.backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(loss.item())
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
                bar.update()
    return losses


def read(model: MultimodalModel, processor: MultimodalProcessor, scans: list) -> list[str]:
    """Generate an answer for each scan, in batches."""
    model.eval()
    answers = []
    for start in tqdm(range(0, len(scans), 100), desc="reading", unit="batch"):
        inputs = processor.apply_chat_template(
            [conversation(scan) for scan in scans[start : start + 100]],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        answers += processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def main() -> None:
    """Train, read the held-out scans, save, and check in a new process that the saved model gives the same answers."""
    train_scans, test_scans, train_words, test_words = load_scans()
    tokenizer = make_tokenizer()
    model = compose_model(tokenizer)
    processor = MultimodalProcessor(tokenizer=tokenizer, model=model, chat_template=CHAT)
    losses = train(model, processor, train_scans, train_words)
    answers = read(model, processor, test_scans)
    model.save_pretrained(FOLDER / "model")
    processor.save_pretrained(FOLDER / "model")
    (FOLDER / "answers.json").write_text(json.dumps(answers))
    reloaded_equal = subprocess.run([sys.executable, __file__, "--check"], check=False).returncode == 0
    accuracy = sum(a == b for a, b in zip(answers, test_words, strict=True)) / len(test_words)
    metrics = {"accuracy": accuracy, "reloaded_equal": reloaded_equal, "held_out": len(answers), "steps": len(losses)}
    (FOLDER / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    draw_report(FOLDER / "report.png", losses, test_scans, test_words, answers)
    print(f"{accuracy:.1%} of {len(answers)} held-out scans are read correctly;")
    print(f"the saved model gives the same answers: {reloaded_equal}")
    print(f"look at {FOLDER / 'report.png'}")


def check() -> None:
    """Load the saved model in this new process, and exit with 0 if it gives the same answers."""
    _, test_scans, _, _ = load_scans()
    model = MultimodalModel.from_pretrained(FOLDER / "model")
    processor = MultimodalProcessor.from_pretrained(FOLDER / "model")
    sys.exit(read(model, processor, test_scans) != json.loads((FOLDER / "answers.json").read_text()))


if __name__ == "__main__":
    torch.set_num_threads(1)  # more threads don't speed up models this small
    check() if "--check" in sys.argv else main()
