"""Train a vision-language model in the two stages of LLaVA-1.5: the projector alone, then the projector and LoRA.

    python examples/finetune_llava.py --tiny     downloads nothing; takes under two minutes on two cores

At full size, with the files that LLaVA publishes (https://github.com/haotian-liu/LLaVA/blob/main/docs/Data.md):

    torchrun --nproc_per_node 8 examples/finetune_llava.py \\
        --language-model meta-llama/Llama-3.2-1B-Instruct --vision openai/clip-vit-large-patch14-336 \\
        --pretrain-data blip_laion_cc_sbu_558k.json --pretrain-images images/pretrain \\
        --finetune-data llava_v1_5_mix665k.json --finetune-images images/finetune

When the script is started again, it resumes the run. It leaves out entries whose image is missing, and lists them. It
writes to --output the trained weights of each stage (`projector/`, `trained/`), `metrics.json`, and a picture,
`report.png`. With --tiny it first writes small models and data in the same formats. Batch sizes, learning rates and
schedule are those of LLaVA's scripts/v1_5/{pretrain,finetune,finetune_lora}.sh.
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

HELD_OUT = 24  # samples of the second stage's data that are not trained on
CUDA = torch.cuda.is_available()


@dataclass
class Stage:
    """One stage of training; ``batch`` counts the samples of a step over all GPUs and accumulation steps."""

    name: str
    data: Path
    images: Path
    rates: dict[str, float]
    batch: int
    epochs: float = 1


# --- training ---------------------------------------------------------------------------------------------------------


def main() -> None:
    """Compose the model, train the projector, train projector and language model, and write a report."""
    PartialState(cpu=not CUDA)  # connects to the other ranks, if there are any
    args = read_arguments()
    set_seed(0)
    model, processor = compose(args)
    answers = {"before": generate(model, processor, held_out(args))}

    model.set_trainable(encoders={"vision": (False, True)}, language_model=False)
    rates = {"vision.projector": args.pretrain_lr}
    first = Stage("projector", args.pretrain_data, args.pretrain_images, rates, args.pretrain_batch, args.epochs)
    history = {first.name: run(first, model, processor, args)}

    if args.full:
        model.language_model.float()  # for the same reason as the projector in compose()
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
    """Load both checkpoints and add a projector of two layers on CLIP's second to last layer, without CLS."""
    model = MultimodalModel.compose(
        language_model=args.language_model,
        encoders={"vision": args.vision},
        callbacks={"vision": "llava"},
        init_projector_type="mlp",
        dtype="bfloat16" if CUDA else "float32",
    )
    model.to(PartialState().device)
    model.vision_encoder.projector.float()  # weights that train are float32: bfloat16 rounds small steps away
    tokenizer = AutoTokenizer.from_pretrained(args.language_model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, MultimodalProcessor(tokenizer=tokenizer, model=model)


def with_lora(language_model: torch.nn.Module, rank: int) -> torch.nn.Module:
    """Add LoRA to all linear layers except the head."""
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules="all-linear"
    )
    return get_peft_model(language_model, lora)


def run(stage: Stage, model: MultimodalModel, processor: MultimodalProcessor, args: argparse.Namespace) -> list[dict]:
    """Train one stage, or load its weights if it is done. Return the logged entries."""
    done, folder = args.output / stage.name, args.output / "checkpoints" / stage.name
    log = args.output / f"{stage.name}.json"
    if log.exists():
        before = json.loads(log.read_text())
        if before["settings"] != result_settings(args):
            raise SystemExit(f"{log} is from a run with other settings; choose another --output, or delete this one.")
        say(f"{stage.name}: trained already; loading {done}")
        load_trained(model, done)
        return before["history"]
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        say(f"{stage.name}: going on from {checkpoint}")
    options = settings(stage, folder, args)
    samples = args.batch * options.gradient_accumulation_steps * PartialState().num_processes
    say(f"{stage.name}: {samples} samples in a step, {options.gradient_accumulation_steps} x {args.batch} on each GPU")
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
        log.with_suffix(".part").write_text(json.dumps({"settings": result_settings(args), "history": history}))
        log.with_suffix(".part").replace(log)  # atomically: the file marks that this stage is done
    PartialState().wait_for_everyone()
    return history


class PartsTrainer(Trainer):
    """Uses a learning rate for each part.

    It overrides a method, because the Trainer accepts no finished optimizer for a sharded model.
    """

    def __init__(self, rates: dict[str, float], *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.rates = rates

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Create the optimizer. The Trainer calls this before it shards the model, and again after it changes."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(parameter_groups(self.model, self.rates))
        return self.optimizer


def result_settings(args: argparse.Namespace) -> dict[str, str]:
    """The arguments that change the trained weights, as text."""
    others = ("output", "workers", "log_every", "save_every", "show_every")
    return {name: str(value) for name, value in vars(args).items() if name not in others}


def settings(stage: Stage, folder: Path, args: argparse.Namespace) -> TrainingArguments:
    """LLaVA's schedule, with as many accumulation steps as the batch size of the stage needs."""
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
        ddp_find_unused_parameters=False,  # every step uses all trained weights, also without images
        save_steps=args.save_every,
        save_total_limit=1,  # a checkpoint holds the whole model
        dataloader_num_workers=args.workers,
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,  # the collator reads conversations
        use_cpu=not CUDA,
        report_to="none",
    )


def training_data(stage: Stage, args: argparse.Namespace) -> Subset:
    """The usable entries of the stage's file without the held-out ones."""
    data = usable(stage.data, stage.images, args.output)
    kept = HELD_OUT if stage.data.samefile(args.finetune_data) else 0
    return Subset(data, range(len(data) - kept))


def held_out(args: argparse.Namespace) -> list[dict]:
    """The held-out conversations: the last ones of the second stage's data, without those that have no question."""
    data = usable(args.finetune_data, args.finetune_images, args.output)
    if len(data) <= HELD_OUT:
        raise SystemExit(f"{args.finetune_data} has {len(data)} conversations, but more than {HELD_OUT} are needed.")
    samples = (data[index] for index in range(len(data) - HELD_OUT, len(data)))
    return [sample for sample in samples if answer_at(sample) > 0]


@cache
def usable(file: Path, images: Path, output: Path) -> Subset:
    """The entries whose turns are in order and whose images exist; the others are listed in a file in ``output``."""
    data = LlavaData(file, images)
    main_process = PartialState().is_main_process
    indices = tqdm(range(len(data)), f"checking {file.name}", leave=False, disable=not main_process)
    problems = {index: problem for index in indices if (problem := data.problem(index))}
    if problems:
        listing = output / f"left-out-{file.stem}.txt"
        if main_process:
            listing.parent.mkdir(parents=True, exist_ok=True)
            listing.write_text("\n".join(problems.values()) + "\n")
        say(f"{file.name}: {len(problems)} of {len(data)} entries are left out; {listing} says why")
    return Subset(data, [index for index in range(len(data)) if index not in problems])


# --- answers and report -----------------------------------------------------------------------------------------------


def generate(model: MultimodalModel, processor: MultimodalProcessor, samples: list[dict]) -> list[str]:
    """Answer the first question of each conversation. Every rank calls this, since a sharded model needs all ranks."""
    was_training = model.training
    model.eval()
    prompts = [sample["messages"][: answer_at(sample)] for sample in samples]
    counts = [sum(part["type"] == "image" for message in prompt for part in message["content"]) for prompt in prompts]
    images = [sample["images"][:count] for sample, count in zip(samples, counts, strict=True)]
    inputs = processor.apply_chat_template(
        prompts, add_generation_prompt=True, tokenize=True, return_dict=True, images=images
    )
    sharded = isinstance(model, FSDPModule)
    if sharded:  # only the model's own forward gathers the weights outside the blocks: embeddings, norm, head
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
    """The index of the first answer to a user, or -1. Some of LLaVA's conversations begin with an answer."""
    roles = [message["role"] for message in sample["messages"]]
    return next((i for i in range(1, len(roles)) if roles[i - 1 : i + 1] == ["user", "assistant"]), -1)


class Throughput(TrainerCallback):
    """Measures tokens per second, between two logs and in total."""

    def __init__(self) -> None:
        self.started = self.last = (0.0, 0)
        self.seconds = self.tokens_per_second = 0.0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Start to measure. Tokens from before the run was resumed do not count."""
        self.started = self.last = (time.perf_counter(), state.num_input_tokens_seen)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Add the tokens per second since the last log."""
        now = (time.perf_counter(), state.num_input_tokens_seen)
        if logs is not None and "loss" in logs and now[0] > self.last[0]:
            logs["tokens/s"] = round((now[1] - self.last[1]) / (now[0] - self.last[0]))
        self.last = now
        self.seconds = now[0] - self.started[0]
        self.tokens_per_second = (now[1] - self.started[1]) / max(self.seconds, 1e-9)


class FirstAudit(TrainerCallback):
    """Prints which parts the first step trained, with warnings about mistakes."""

    shown = False

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        """Print the audit once; at this point the gradients exist."""
        if not self.shown and state.is_world_process_zero:
            tqdm.write(str(audit(model)))
        self.shown = True


class Answers(TrainerCallback):
    """Prints answers of the model during training."""

    def __init__(self, processor: MultimodalProcessor, samples: list[dict], every: int) -> None:
        self.processor, self.samples, self.every = processor, samples, every

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        """Print answers after every ``every`` steps."""
        if state.global_step % self.every:
            return
        answers = generate(model, self.processor, self.samples)
        for sample, answer in zip(self.samples, answers, strict=True):
            if state.is_world_process_zero:
                tqdm.write(f"  step {state.global_step}: {answer!r}, wanted {wanted(sample)!r}")


def peak() -> float:
    """The peak of the allocated GPU memory, in GB."""
    return torch.cuda.max_memory_allocated() / 1e9 if CUDA else 0.0


def comes_back_equal(args: argparse.Namespace, answers: list[str]) -> bool | None:
    """Whether the trained weights, loaded onto the original checkpoints, give the same answers; with --tiny only."""
    if not args.tiny or PartialState().num_processes > 1:
        return None
    model, processor = compose(args)
    load_trained(model, args.output / "trained")
    return generate(model, processor, held_out(args)) == answers


def report(args: argparse.Namespace, history: dict, answers: dict, reloaded_equal: bool | None) -> None:
    """Write the numbers and the picture."""
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
    say(f"{exact['after']:.0%} of {len(samples)} held-out answers are exactly right (before: {exact['before']:.0%})")
    say(f"look at {args.output / 'report.png'}")


def say(text: str) -> None:
    """Print on the main process only."""
    if PartialState().is_main_process:
        print(text, flush=True)


# --- arguments --------------------------------------------------------------------------------------------------------


def read_arguments() -> argparse.Namespace:
    """Read the command line; with --tiny, write small models and data and fill in their paths."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="use small models and data, which the script writes itself")
    parser.add_argument("--language-model", help="name or folder of a causal language model with a chat template")
    parser.add_argument("--vision", help="name or folder of a vision encoder")
    for stage in ("pretrain", "finetune"):
        parser.add_argument(f"--{stage}-data", type=Path, help="JSON file in LLaVA's layout")
        parser.add_argument(f"--{stage}-images", type=Path, help="folder that the image paths in this file start from")
    parser.add_argument("--output", type=Path, default=Path("runs/finetune_llava"))
    parser.add_argument("--full", action="store_true", help="train the whole language model instead of LoRA")
    parser.add_argument("--lora-rank", type=int, default=128)
    parser.add_argument("--pretrain-lr", type=float, default=1e-3)
    parser.add_argument("--finetune-lr", type=float, help="default: 2e-4 for LoRA, 2e-5 with --full")
    parser.add_argument("--projector-lr", type=float, default=2e-5, help="for the projector in the second stage")
    parser.add_argument("--pretrain-batch", type=int, default=256, help="samples in a step, over all GPUs")
    parser.add_argument("--finetune-batch", type=int, default=128, help="samples in a step, over all GPUs")
    parser.add_argument("--batch", type=int, default=8, help="samples on one GPU at a time")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--max-steps", type=int, default=-1, help="largest number of steps in each stage; -1: no limit")
    parser.add_argument("--max-length", type=int, default=2048, help="longest sample, in tokens")
    parser.add_argument("--workers", type=int, default=4, help="data loader processes for each GPU")
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--show-every", type=int, default=250, help="number of steps between printed answers")
    if parser.parse_known_args()[0].tiny:
        torch.set_num_threads(1)  # more threads don't speed up models this small
        parser.set_defaults(**TINY)
    args = parser.parse_args()
    if args.tiny:
        write_tiny(args)
    needed = ("language_model", "vision", "pretrain_data", "pretrain_images", "finetune_data", "finetune_images")
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(args, name) is None]
    if missing:
        parser.error(f"give {', '.join(missing)}; or --tiny to try the script without them")
    for path in (args.pretrain_data, args.finetune_data, args.pretrain_images, args.finetune_images):
        if not path.exists():
            parser.error(f"{path} does not exist; see --help for the expected files")
    if args.finetune_lr is None:
        args.finetune_lr = 2e-5 if args.full else 2e-4
    return args


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the data loader forks its workers
    main()
