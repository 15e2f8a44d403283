"""Train a small vision-language model to read digits on canvases of different shapes, with and without tiling.

    python examples/read_canvas.py       trains, generates, and writes runs/canvas/ (some minutes on two cores)

The callbacks ``"llava-next"`` cut a canvas into tiles of the encoder's input size; ``"llava"`` scales it down to one
such input. Everything else is the same: encoder, language model, canvases and number of steps. Both models train at the
same time, each on one core.

A step without tiling is cheaper, and the model without tiling still improves when its training ends: with the same CPU
time instead of the same number of steps, it reaches part of the difference (docs/log.md has the numbers).
"""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from canvases import DIGIT, WORDS, Canvas, Canvases
from read_canvas_report import draw_report
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, ViTConfig, ViTModel

from cornstarch_core import ModalEncoderModule, MultimodalCollator, MultimodalModel, MultimodalProcessor

FOLDER = Path("runs/canvas")
QUESTION = "read the digits"
TILE = DIGIT  # the encoder's input has 16 x 16 pixels: one digit at full size
GRIDS = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]
PINPOINTS = [[rows * TILE, columns * TILE] for rows, columns in GRIDS]
VARIANTS = {
    "tiled": {
        "callbacks": "llava-next",
        "callback_options": {"image_grid_pinpoints": PINPOINTS, "vision_feature_layer": -1},
    },
    "untiled": {"callbacks": "llava", "callback_options": {"vision_feature_layer": -1}},
}
STEPS, BATCH, HELD_OUT, SAMPLE = 1600, 32, 600, 100
CHAT = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


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


def compose_model(variant: str, tokenizer: PreTrainedTokenizerFast) -> MultimodalModel:
    """Compose a small ViT with the callbacks of the variant, and a small Llama; composing creates the projector."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    vit = ViTModel(
        # the default for initial weights suits models ten times as wide
        ViTConfig(**sizes, image_size=TILE, patch_size=TILE // 2, num_channels=1, initializer_range=0.1),
        add_pooling_layer=False,
    )
    llama = LlamaForCausalLM(
        LlamaConfig(
            **sizes,
            vocab_size=len(tokenizer),
            initializer_range=0.05,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    encoder = ModalEncoderModule(vit, **VARIANTS[variant])
    return MultimodalModel(encoders={"vision": encoder}, language_model=llama, init_projector_type="mlp")


def conversation(canvas: Canvas, answer: str | None = None) -> list[dict]:
    """Make a conversation: the question about a canvas, and the answer if it is given."""
    image = {"type": "image", "image": canvas.image}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}]
    return messages if answer is None else [*messages, {"role": "assistant", "content": answer}]


def train(model: MultimodalModel, processor: MultimodalProcessor, bar: tqdm) -> list[float]:
    """Train with plain PyTorch: canvases drawn on demand, an optimizer and a loop. Return the loss of each step."""
    collator = MultimodalCollator(processor, train_on="assistant")
    loader = DataLoader(
        Canvases(STEPS * BATCH),
        BATCH,
        collate_fn=lambda canvases: collator([conversation(canvas, canvas.words) for canvas in canvases]),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    losses = []
    model.train()
    for batch in loader:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
        bar.update()
    return losses


def read(model: MultimodalModel, processor: MultimodalProcessor, canvases: list[Canvas]) -> list[str]:
    """Generate an answer for each canvas, in batches."""
    model.eval()
    answers = []
    for start in range(0, len(canvases), SAMPLE):
        inputs = processor.apply_chat_template(
            [conversation(canvas) for canvas in canvases[start : start + SAMPLE]],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )  # fmt: skip
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        answers += processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def learn(variant: str) -> tuple[list[float], list[str]]:
    """Train a model, save it, and read the held-out canvases. Return the loss of each step, and the answers."""
    tokenizer = make_tokenizer()
    model = compose_model(variant, tokenizer)
    processor = MultimodalProcessor(tokenizer=tokenizer, model=model, chat_template=CHAT)
    with tqdm(total=STEPS, desc=f"{variant:>7}", unit="step", position=list(VARIANTS).index(variant)) as bar:
        losses = train(model, processor, bar)
    folder = FOLDER / ("model" if variant == "tiled" else f"model-{variant}")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return losses, read(model, processor, list(Canvases(HELD_OUT, held_out=True)))


def read_again() -> list[str]:
    """Load the saved model, and read some of the held-out canvases."""
    model = MultimodalModel.from_pretrained(FOLDER / "model")
    processor = MultimodalProcessor.from_pretrained(FOLDER / "model")
    return read(model, processor, list(Canvases(SAMPLE, held_out=True)))


def workers(number: int) -> ProcessPoolExecutor:
    """Start new processes with one thread each; more threads don't speed up models this small."""
    return ProcessPoolExecutor(number, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))


def main() -> None:
    """Train both models, compare them, and check in a new process that the saved model gives the same answers."""
    with workers(len(VARIANTS)) as pool:
        results = dict(zip(VARIANTS, pool.map(learn, VARIANTS), strict=True))
    losses = {variant: result[0] for variant, result in results.items()}
    answers = {variant: result[1] for variant, result in results.items()}
    with workers(1) as pool:
        reloaded_equal = pool.submit(read_again).result() == answers["tiled"][:SAMPLE]
    canvases = list(Canvases(HELD_OUT, held_out=True))
    words = [canvas.words for canvas in canvases]
    accuracy = {
        variant: sum(a == b for a, b in zip(read, words, strict=True)) / HELD_OUT for variant, read in answers.items()
    }
    metrics = {
        "accuracy": accuracy["tiled"],
        "untiled_accuracy": accuracy["untiled"],
        "reloaded_equal": reloaded_equal,
        "held_out": HELD_OUT,
        "steps": STEPS,
    }
    (FOLDER / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    draw_report(FOLDER / "report.png", canvases, losses, answers, PINPOINTS)
    print(f"{accuracy['tiled']:.1%} of {HELD_OUT} held-out canvases are read without a mistake with tiling,")
    print(f"{accuracy['untiled']:.1%} without tiling, after {STEPS:,} steps each;")
    print(f"the saved model gives the same answers: {reloaded_equal}")
    print(f"look at {FOLDER / 'report.png'}")


if __name__ == "__main__":
    main()
