"""Teach a language model to see, in the two stages of LLaVA-1.5: the projector alone, then the projector and LoRA.

    python examples/finetune_llava.py --tiny     downloads nothing; under two minutes on two cores

At full size, on the files that LLaVA publishes (https://github.com/haotian-liu/LLaVA/blob/main/docs/Data.md):

    torchrun --nproc_per_node 8 examples/finetune_llava.py \\
        --language-model meta-llama/Llama-3.2-1B-Instruct --vision openai/clip-vit-large-patch14-336 \\
        --pretrain-data blip_laion_cc_sbu_558k.json --pretrain-images images/pretrain \\
        --finetune-data llava_v1_5_mix665k.json --finetune-images images/finetune

Started again, it goes on where it was. Entries without their image are left out, and listed. It leaves in --output
what was trained in each stage (`projector/`, `trained/`), `metrics.json`, and a picture, `report.png`. --tiny writes
small models and data as a hub would hold them, and then goes the same way. Batches, rates and schedule are those of
LLaVA's scripts/v1_5/{pretrain,finetune,finetune_lora}.sh.
"""

import argparse
import json
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from accelerate import PartialState
from cornstarch_vision.llava_data import LlavaData
from finetune_llava_report import draw_report
from finetune_llava_tiny import SETTINGS as TINY
from finetune_llava_tiny import write_tiny
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Subset
from tqdm import tqdm
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed

from cornstarch_core import MultimodalCollator, MultimodalModel, MultimodalProcessor
from cornstarch_core.training import audit, last_checkpoint, load_trained, parameter_groups, save_trained

HELD_OUT = 24  # of the second stage's data, never trained on
CUDA = torch.cuda.is_available()


@dataclass
class Stage:
    """One stage of training; ``batch`` is over all GPUs and accumulated steps."""

    name: str
    data: Path
    images: Path
    rates: dict[str, float]
    batch: int
    epochs: float = 1


# --- the recipe -------------------------------------------------------------------------------------------------------


def main() -> None:
    """Compose, train the projector, train projector and language model, look at what came of it."""
    PartialState(cpu=not CUDA)  # joins the other ranks, if there are any
    args = read_arguments()
    set_seed(0)
    model, processor = compose(args)
    answers = {"before": generate(model, processor, held_out(args))}

    model.set_trainable(encoders={"vision": (False, True)}, language_model=False)
    rates = {"vision.projector": args.pretrain_lr}
    first = Stage("projector", args.pretrain_data, args.pretrain_images, rates, args.pretrain_batch, args.epochs)
    history = {first.name: run(first, model, processor, args)}

    if args.full:
        model.language_model.float()  # as the projector above
        model.set_trainable(language_model=True)
    else:
        model.language_model = with_lora(model.language_model, args.lora_rank)
    rates = {"vision.projector": args.projector_lr, "language_model": args.finetune_lr}
    second = Stage("trained", args.finetune_data, args.finetune_images, rates, args.finetune_batch, args.epochs)
    history[second.name] = run(second, model, processor, args)

    answers["after"] = generate(model, processor, held_out(args))
    if PartialState().is_main_process:
        report(args, history, answers, comes_back_equal(args, answers["after"]))


def compose(args: argparse.Namespace) -> tuple[MultimodalModel, MultimodalProcessor]:
    """Both checkpoints, and a new projector of two layers; the features of CLIP's last layer but one, without CLS."""
    model = MultimodalModel.compose(
        language_model=args.language_model,
        encoders={"vision": args.vision},
        callbacks={"vision": "llava"},
        init_projector_type="mlp",
        dtype="bfloat16" if CUDA else "float32",
    )
    model.to(PartialState().device)
    model.vision_encoder.projector.float()  # what trains has to be precise: steps are smaller than bfloat16 can tell
    tokenizer = AutoTokenizer.from_pretrained(args.language_model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, MultimodalProcessor(tokenizer=tokenizer, model=model)


def with_lora(language_model: torch.nn.Module, rank: int) -> torch.nn.Module:
    """LoRA on all linear layers but the head."""
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules="all-linear"
    )
    return get_peft_model(language_model, lora)


def run(stage: Stage, model: MultimodalModel, processor: MultimodalProcessor, args: argparse.Namespace) -> list[dict]:
    """Train one stage, or load what it left. Returns what it logged."""
    done, folder = args.output / stage.name, args.output / "checkpoints" / stage.name
    log = args.output / f"{stage.name}.json"
    if log.exists():
        before = json.loads(log.read_text())
        if before["settings"] != wording(args):
            raise SystemExit(f"{log} is of a run with other settings; choose another --output, or delete that one.")
        say(f"{stage.name}: trained already; loading {done}")
        load_trained(model, done)
        return before["history"]
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        say(f"{stage.name}: going on from {checkpoint}")
    options = settings(stage, folder, args)
    in_all = args.batch * options.gradient_accumulation_steps * PartialState().num_processes
    say(f"{stage.name}: {in_all} samples a step, {options.gradient_accumulation_steps} times {args.batch} on each GPU")
    speed = Throughput()
    trainer = PartsTrainer(
        stage.rates,
        model,
        options,
        train_dataset=training_data(stage, args),
        data_collator=MultimodalCollator(processor, max_length=args.max_length),
        processing_class=processor,
        callbacks=[speed, FirstAudit(), Answers(processor, held_out(args)[:4], args.show_every)],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    history.append({"seconds": speed.seconds, "tokens_per_second": speed.tokens_per_second, "peak_memory_gb": peak()})
    save_trained(model, done, is_main_process=trainer.is_world_process_zero())
    if trainer.is_world_process_zero():
        log.with_suffix(".part").write_text(json.dumps({"settings": wording(args), "history": history}))
        log.with_suffix(".part").replace(log)  # at once: the file is the sign that this stage is done
    PartialState().wait_for_everyone()
    return history


class PartsTrainer(Trainer):
    """A rate for each part. By a method, since of a sharded model the Trainer takes no finished optimizer."""

    def __init__(self, rates: dict[str, float], *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.rates = rates

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Called before a model is sharded, and again after a change of it."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(parameter_groups(self.model, self.rates))
        return self.optimizer


def wording(args: argparse.Namespace) -> dict[str, str]:
    """What a run was asked for, as far as it changes what is trained."""
    silent = ("output", "workers", "log_every", "save_every", "show_every")
    return {name: str(value) for name, value in vars(args).items() if name not in silent}


def settings(stage: Stage, folder: Path, args: argparse.Namespace) -> TrainingArguments:
    """LLaVA's schedule; the batch in as many steps as it takes."""
    per_step = args.batch * PartialState().num_processes
    checkpointing = "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else None
    return TrainingArguments(
        str(folder),
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=max(stage.batch // per_step, 1),
        num_train_epochs=stage.epochs,
        max_steps=args.max_steps,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        bf16=CUDA,
        **{checkpointing or "gradient_checkpointing": CUDA},
        logging_steps=args.log_every,
        logging_first_step=True,
        ddp_find_unused_parameters=False,  # what trains is used in every step, also without images
        save_steps=args.save_every,
        save_total_limit=1,  # a checkpoint holds the whole model
        dataloader_num_workers=args.workers,
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,  # the collator reads conversations
        use_cpu=not CUDA,
        report_to="none",
    )


def training_data(stage: Stage, args: argparse.Namespace) -> Subset:
    """All of the file but the samples to look at."""
    data = usable(stage.data, stage.images, args.output)
    kept = HELD_OUT if stage.data.samefile(args.finetune_data) else 0
    return Subset(data, range(len(data) - kept))


def held_out(args: argparse.Namespace) -> list[dict]:
    """The last conversations of the second stage's data, if somebody asks in them."""
    data = usable(args.finetune_data, args.finetune_images, args.output)
    if len(data) <= HELD_OUT:
        raise SystemExit(f"{args.finetune_data} has {len(data)} conversations; {HELD_OUT} are held out, so give more.")
    samples = (data[index] for index in range(len(data) - HELD_OUT, len(data)))
    return [sample for sample in samples if answer_at(sample) > 0]


@cache
def usable(file: Path, images: Path, output: Path) -> Subset:
    """The entries whose turns are in order and whose images are there; of the others a list is left in ``output``."""
    data = LlavaData(file, images)
    main_process = PartialState().is_main_process
    looked_at = tqdm(range(len(data)), f"looking through {file.name}", leave=False, disable=not main_process)
    problems = {index: problem for index in looked_at if (problem := data.problem(index))}
    if problems:
        list_of_them = output / f"left-out-{file.stem}.txt"
        if main_process:
            list_of_them.parent.mkdir(parents=True, exist_ok=True)
            list_of_them.write_text("\n".join(problems.values()) + "\n")
        say(f"{file.name}: {len(problems)} of {len(data)} entries are left out; {list_of_them} says why")
    return Subset(data, [index for index in range(len(data)) if index not in problems])


# --- looking at it ----------------------------------------------------------------------------------------------------


def generate(model: MultimodalModel, processor: MultimodalProcessor, samples: list[dict]) -> list[str]:
    """Answers to the first question of each conversation. On every rank, since a sharded model needs all of them."""
    was_training = model.training
    model.eval()
    prompts = [sample["messages"][: answer_at(sample)] for sample in samples]
    counts = [sum(part["type"] == "image" for message in prompt for part in message["content"]) for prompt in prompts]
    images = [sample["images"][:count] for sample, count in zip(samples, counts, strict=True)]
    inputs = processor.apply_chat_template(
        prompts, add_generation_prompt=True, tokenize=True, return_dict=True, images=images
    )
    sharded = isinstance(model, FSDPModule)
    if sharded:  # only its own forward gathers what lies outside the blocks: embeddings, norm, head
        model.unshard()
    ids = model.generate(**inputs.to(PartialState().device), max_new_tokens=24, do_sample=False)
    if sharded:
        model.reshard()
    model.train(was_training)
    answers = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def wanted(sample: dict) -> str:
    """The first answer of a conversation."""
    return "".join(part.get("text", "") for part in sample["messages"][answer_at(sample)]["content"]).strip()


def answer_at(sample: dict) -> int:
    """Where the first answer to a user is; -1 if there is none. Some of LLaVA's conversations begin with an answer."""
    roles = [message["role"] for message in sample["messages"]]
    return next((i for i in range(1, len(roles)) if roles[i - 1 : i + 1] == ["user", "assistant"]), -1)


class Throughput(TrainerCallback):
    """Tokens a second, in the log and in all."""

    def __init__(self) -> None:
        self.started = self.last = (0.0, 0)
        self.seconds = self.tokens_per_second = 0.0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Tokens that were seen before a run went on do not count."""
        self.started = self.last = (time.perf_counter(), state.num_input_tokens_seen)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Since the last log."""
        now = (time.perf_counter(), state.num_input_tokens_seen)
        if logs is not None and "loss" in logs and now[0] > self.last[0]:
            logs["tokens/s"] = round((now[1] - self.last[1]) / (now[0] - self.last[0]))
        self.last = now
        self.seconds = now[0] - self.started[0]
        self.tokens_per_second = (now[1] - self.started[1]) / max(self.seconds, 1e-9)


class FirstAudit(TrainerCallback):
    """Shows which parts the first step trained, and warns of what is a mistake."""

    shown = False

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        """Once; gradients are there now."""
        if not self.shown and state.is_world_process_zero:
            tqdm.write(str(audit(model)))
        self.shown = True


class Answers(TrainerCallback):
    """Shows what the model answers while it trains."""

    def __init__(self, processor: MultimodalProcessor, samples: list[dict], every: int) -> None:
        self.processor, self.samples, self.every = processor, samples, every

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        """Every so many steps."""
        if state.global_step % self.every:
            return
        answers = generate(model, self.processor, self.samples)
        for sample, answer in zip(self.samples, answers, strict=True):
            if state.is_world_process_zero:
                tqdm.write(f"  step {state.global_step}: {answer!r}, wanted {wanted(sample)!r}")


def peak() -> float:
    """GPU memory that was in use at most, in GB."""
    return torch.cuda.max_memory_allocated() / 1e9 if CUDA else 0.0


def comes_back_equal(args: argparse.Namespace, answers: list[str]) -> bool | None:
    """Whether what was trained, put onto the checkpoints that it was trained from, answers the same; tiny ones only."""
    if not args.tiny or PartialState().num_processes > 1:
        return None
    model, processor = compose(args)
    load_trained(model, args.output / "trained")
    return generate(model, processor, held_out(args)) == answers


def report(args: argparse.Namespace, history: dict, answers: dict, reloaded_equal: bool | None) -> None:
    """Numbers, and a picture."""
    samples = held_out(args)
    right = {when: [a == wanted(s) for a, s in zip(found, samples, strict=True)] for when, found in answers.items()}
    stages = {
        name: {"loss": [entries[0]["loss"], entries[-2]["loss"]], **entries[-1]} for name, entries in history.items()
    }
    exact = {when: sum(marks) / len(marks) for when, marks in right.items()}
    metrics = {"stages": stages, "exact": exact, "held_out": len(samples), "reloaded_equal": reloaded_equal}
    (args.output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (args.output / "answers.json").write_text(json.dumps(answers, indent=2) + "\n")
    losses = {name: [(e["step"], e["loss"]) for e in entries[:-1]] for name, entries in history.items()}
    pictures = [(s["images"][0] if s["images"] else None, wanted(s)) for s in samples]
    draw_report(args.output / "report.png", losses, stages, pictures, answers)
    say(f"{exact['after']:.0%} of {len(samples)} held-out answers are right to the word ({exact['before']:.0%} before)")
    say(f"look at {args.output / 'report.png'}")


def say(text: str) -> None:
    """On one rank."""
    if PartialState().is_main_process:
        print(text, flush=True)


# --- arguments --------------------------------------------------------------------------------------------------------


def read_arguments() -> argparse.Namespace:
    """The command line; --tiny fills in models and data that it writes itself."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small models and data, written here")
    parser.add_argument("--language-model", help="name or folder of a causal language model with a chat template")
    parser.add_argument("--vision", help="name or folder of a vision encoder")
    for stage in ("pretrain", "finetune"):
        parser.add_argument(f"--{stage}-data", type=Path, help="JSON in LLaVA's layout")
        parser.add_argument(f"--{stage}-images", type=Path, help="the folder that its image paths begin at")
    parser.add_argument("--output", type=Path, default=Path("runs/finetune_llava"))
    parser.add_argument("--full", action="store_true", help="train the whole language model instead of LoRA")
    parser.add_argument("--lora-rank", type=int, default=128)
    parser.add_argument("--pretrain-lr", type=float, default=1e-3)
    parser.add_argument("--finetune-lr", type=float, help="default: 2e-4 for LoRA, 2e-5 with --full")
    parser.add_argument("--projector-lr", type=float, default=2e-5, help="in the second stage")
    parser.add_argument("--pretrain-batch", type=int, default=256, help="over all GPUs")
    parser.add_argument("--finetune-batch", type=int, default=128, help="over all GPUs")
    parser.add_argument("--batch", type=int, default=8, help="on one GPU at a time")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--max-steps", type=int, default=-1, help="of each stage")
    parser.add_argument("--max-length", type=int, default=2048, help="in tokens")
    parser.add_argument("--workers", type=int, default=4, help="processes that prepare batches, for each GPU")
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--show-every", type=int, default=250, help="steps between looks at generated answers")
    if parser.parse_known_args()[0].tiny:
        torch.set_num_threads(1)  # models this small gain nothing from more
        parser.set_defaults(**TINY)
    args = parser.parse_args()
    if args.tiny:
        write_tiny(args)
    needed = ("language_model", "vision", "pretrain_data", "pretrain_images", "finetune_data", "finetune_images")
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(args, name) is None]
    if missing:
        parser.error(f"give {', '.join(missing)}; or --tiny to try the recipe without any")
    for path in (args.pretrain_data, args.finetune_data, args.pretrain_images, args.finetune_images):
        if not path.exists():
            parser.error(f"{path} does not exist; see --help for what is expected")
    if args.finetune_lr is None:
        args.finetune_lr = 2e-5 if args.full else 2e-4
    return args


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # data loader workers are forked
    main()
