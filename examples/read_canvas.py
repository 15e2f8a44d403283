"""Teach a small vision-language model to read several digits on canvases of any shape, with tiling and without.

    python examples/read_canvas.py       trains both, reads, and writes runs/canvas/ (some minutes on two cores)

With the callbacks ``"llava-next"`` a canvas is cut into tiles of the size that the ViT takes; with ``"llava"`` it is
squeezed into one. All else is the same: the ViT, the Llama, the canvases, the number of steps.
"""

import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from canvases import WORDS, Canvas, Canvases
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, ViTConfig, ViTModel

from cornstarch_core import ModalEncoderModule, MultimodalCollator, MultimodalModel, MultimodalProcessor

FOLDER = Path("runs/canvas")
QUESTION = "read the digits !"
TILE = 16
GRIDS = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]  # of tiles: rows, columns
PINPOINTS = [[rows * TILE, columns * TILE] for rows, columns in GRIDS]
VARIANTS = {
    "tiled": {"callbacks": "llava-next", "callback_options": {"vision_feature_layer": -1, "image_grid_pinpoints": PINPOINTS}},
    "untiled": {"callbacks": "llava", "callback_options": {"vision_feature_layer": -1}},
}
import os
STEPS, BATCH, HELD_OUT = int(os.environ.get("STEPS", 600)), int(os.environ.get("BATCH", 32)), 600
LR = float(os.environ.get("LR", 2e-3))
W = int(os.environ.get("W", 64)); LW = int(os.environ.get("LW", 64))
CHAT = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows the words of this conversation."""
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
    """A small ViT with the callbacks of the variant, a projector made on the way, and a small Llama."""
    torch.manual_seed(0)
    vit = ViTModel(
        ViTConfig(
            image_size=TILE, patch_size=4, num_channels=1, hidden_size=W, intermediate_size=2*W,
            num_hidden_layers=3, num_attention_heads=4,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=LW, intermediate_size=2*LW, num_hidden_layers=int(os.environ.get("LL", 3)), num_attention_heads=4,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        )
    )  # fmt: skip
    encoder = ModalEncoderModule(vit, **VARIANTS[variant])
    return MultimodalModel(encoders={"vision": encoder}, language_model=llama, init_projector_type="mlp")


def conversation(canvas: Canvas, answered: bool) -> list[dict]:
    """The question about a canvas, with or without the answer."""
    image = {"type": "image", "image": canvas.image}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}]
    return [*messages, {"role": "assistant", "content": canvas.words}] if answered else messages


class Conversations(Dataset):
    def __init__(self, canvases): self.canvases = canvases
    def __len__(self): return len(self.canvases)
    def __getitem__(self, i): return conversation(self.canvases[i], True)


def train(model, processor, name):
    data = Conversations(Canvases(STEPS * BATCH))
    loader = DataLoader(data, BATCH, collate_fn=MultimodalCollator(processor, train_on="assistant"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=len(loader))
    losses = []
    model.train()
    with tqdm(loader, desc=f"training {name}", unit="step", position=list(VARIANTS).index(name), mininterval=10) as bar:
        for batch in bar:
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return losses


def read(model, processor, canvases):
    model.eval()
    answers = []
    for start in range(0, len(canvases), 50):
        inputs = processor.apply_chat_template(
            [conversation(canvas, False) for canvas in canvases[start : start + 50]],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )  # fmt: skip
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        answers += processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


if __name__ == "__main__":
    import time
    from collections import Counter
    torch.set_num_threads(1)
    name = sys.argv[1]
    tok = make_tokenizer()
    model = compose_model(name, tok)
    proc = MultimodalProcessor(tokenizer=tok, model=model, chat_template=CHAT)
    t = time.process_time()
    losses = train(model, proc, name)
    t1 = time.process_time()
    held = list(Canvases(HELD_OUT, held_out=True))
    ans = read(model, proc, held)
    good, tot = Counter(), Counter()
    for c, a in zip(held, ans):
        for k in ("all", c.layout, c.digits):
            tot[k] += 1; good[k] += a == c.words
    print(name, os.environ.get("TAG"), "train", round(t1 - t), "read", round(time.process_time() - t1), {k: round(good[k] / tot[k], 3) for k in tot}, [round(sum(losses[i:i+50])/50, 3) for i in range(0, len(losses), 50)])
