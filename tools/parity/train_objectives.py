#!/usr/bin/env python3
"""Compares 20 training steps with transformers' Trainer and TRL's trainers, in float32 on the same
data: losses, learning rates and gradient norms of every step, and TRL's rewards.

    python tools/parity/train_objectives.py [--conquer BINARY] [--seeds 1]

Every step sees the whole of a small data set, so that its order does not matter. The samples have
unequal lengths. One seed is fixed, and another one is fresh in every run. Where a peer computes
something else, the script says so and checks the difference (`differs`). Needs torch, transformers
and trl.
"""

import json
import logging
import os
import random
import tempfile
import warnings

import torch
from datasets import Dataset, disable_progress_bars
from transformers import (AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM,
                          PrinterCallback, Trainer, TrainingArguments)
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from transformers.utils.logging import disable_progress_bar

from harness import ROOT, check, conquer, run

STEPS, TOLERANCE = 20, 1e-5
# Rewards and the divergence are differences of log-probabilities near -100, whose float32 sums in
# TRL are themselves rounded to 1e-5.
ROUNDED = 1e-4
# The rate of comparisons. With a larger one their losses fall so far towards 0 that the rounding of
# TRL's sums of log-probabilities, near -100 in float32, exceeds a part of 1e-5 of them.
SLOW = 5e-5
# The prompt that conquer gives to a model without a chat template.
ALPACA = ("Below is an instruction that describes a task. "
          "Write a response that appropriately completes the request.\n\n"
          "### Instruction:\n{}\n\n### Response:\n")
WORDS = "lamp fog ship keeper tower storm wick glass match tide rope bell log oil salt gull".split()
SCHEDULES = {  # conquer's flags, and transformers' schedule with its arguments
    "constant": (["constant"], "constant_with_warmup", {}),
    "linear": (["linear"], "linear", {}),
    "cosine": (["cosine"], "cosine", {}),
    "cosine with a minimum": (["cosine", "--min_learning_rate", 1e-4], "cosine_with_min_lr",
                              {"min_lr": 1e-4}),
    "wsd": (["wsd", "--decay_steps", 6], "warmup_stable_decay", {"num_decay_steps": 6}),
    "restarts": (["restarts", "--cycles", 3], "cosine_with_restarts", {"num_cycles": 3}),
}
MEASURES = {"rewards/chosen": "reward_chosen", "rewards/rejected": "reward_rejected",
            "rewards/margins": "reward_margin", "rewards/accuracies": "accuracy", "kl": "kl",
            "nll_loss": "nll_chosen"}


class Case:
    """A model, and where its data and results lie."""

    def __init__(self, folder, name, seed):
        self.folder, self.name, self.random, self.runs = folder, name, random.Random(seed), 0
        torch.manual_seed(seed)
        self.tokenizer = AutoTokenizer.from_pretrained(ROOT / "text/tokenizer/testdata/smollm")
        self.tokenizer.chat_template = None
        self.tokenizer.bos_token = None  # which two of TRL's trainers would add to each prompt
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        LlamaForCausalLM(
            LlamaConfig(vocab_size=max(self.tokenizer.get_vocab().values()) + 1, hidden_size=48,
                        intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                        num_key_value_heads=2, max_position_embeddings=256,
                        tie_word_embeddings=False, initializer_range=0.05, bos_token_id=None,
                        eos_token_id=self.tokenizer.eos_token_id)).save_pretrained(folder / "model")
        self.tokenizer.save_pretrained(folder / "model")

    def model(self):
        return AutoModelForCausalLM.from_pretrained(self.folder / "model", dtype=torch.float32)

    def words(self, most):
        return " ".join(self.random.choices(WORDS, k=self.random.randint(1, most)))

    def ours(self, records, objective, rows, passes=1, rate=SLOW, schedule=("constant", ), warmup=0,
             flags=()):
        """The metrics of conquer's steps."""
        self.runs += 1
        data, out = self.folder / f"{self.runs}.jsonl", self.folder / f"out{self.runs}"
        data.write_text("".join(json.dumps(r) + "\n" for r in records))
        conquer("train", "--model_path", self.folder / "model", "--data_path", data,
                "--output_path", out, "--objective", objective, "--steps", STEPS, "--batch_size",
                rows, "--accumulate", passes, "--learning_rate", rate, "--schedule", *schedule,
                "--warmup_steps", warmup, "--sequence_length", 256, "--dtype", "float32",
                "--device", "cpu", "--checkpoint_steps", 0, *flags)
        return [m for m in map(json.loads, (out / "metrics.jsonl").open()) if "loss" in m]

    def theirs(self, kind, config, records, rows, passes=1, rate=SLOW,
               schedule="constant_with_warmup", arguments=None, warmup=0, reference=False,
               collator=None, **settings):
        """The log of a Trainer's steps."""
        with tempfile.TemporaryDirectory() as out:
            if config is not TrainingArguments:
                settings["max_length"] = 256
            args = config(
                output_dir=out, max_steps=STEPS, per_device_train_batch_size=rows,
                gradient_accumulation_steps=passes, learning_rate=rate, lr_scheduler_type=schedule,
                lr_scheduler_kwargs=arguments or {}, warmup_steps=warmup, weight_decay=0.01,
                max_grad_norm=1.0, optim="adamw_torch", bf16=False, gradient_checkpointing=False,
                use_cpu=True, logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
                **settings)
            more = {"ref_model": self.model()} if reference else {}
            if collator:
                more["data_collator"] = collator
            trainer = kind(model=self.model(), args=args, train_dataset=Dataset.from_list(records),
                           processing_class=self.tokenizer, **more)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            return [m for m in trainer.state.log_history if "loss" in m]

    def compare(self, what, got, want):
        """Checks that both logs agree, and returns how far the losses are apart."""
        assert len(got) == len(want) == STEPS, (len(got), len(want))
        apart = lambda ours, theirs: max(
            abs(g[ours] - w[theirs]) / max(abs(w[theirs]), 1e-30) for g, w in zip(got, want))
        losses, norms = apart("loss", "loss"), apart("gradient_norm", "grad_norm")
        rates = max(abs(g["learning_rate"] - w["learning_rate"]) for g, w in zip(got, want))
        measures, worst = 0, 0.0
        for step, (g, w) in enumerate(zip(got, want)):
            for theirs, ours in MEASURES.items():
                # Before the first update every margin from a reference is 0, and its sign in TRL
                # is that of rounding.
                noise = step == 0 and ours == "accuracy" and "kl" not in g
                if theirs in w and ours in g and not noise:
                    measures += 1
                    worst = max(worst, abs(g[ours] - w[theirs]) / max(abs(w[theirs]), 1))
        check(
            f"{self.name}: {what}", losses < TOLERANCE and norms < TOLERANCE and rates < 1e-12
            and worst < ROUNDED,
            f"loss {want[0]['loss']:.4f} to {want[-1]['loss']:.4f}: losses within {losses:.1e}, "
            f"norms {norms:.1e}, rates {rates:.1e}, {measures} measures {worst:.1e}"
        )
        return losses

    def differs(self, what, got, want):
        """Checks that a peer's losses are other ones, so that a change of the peer is noticed."""
        losses = max(abs(g["loss"] - w["loss"]) / abs(w["loss"]) for g, w in zip(got, want))
        check(f"{self.name}: the peer differs: {what}", losses > 10 * TOLERANCE,
              f"losses within {losses:.1e}")


def likelihood(case):
    texts = [case.words(12) for _ in range(8)]
    records = [{"text": t} for t in texts]
    eos = case.tokenizer.eos_token_id
    ids = [{"input_ids": case.tokenizer(t).input_ids + [eos]} for t in texts]
    for ids_ in ids:
        ids_["labels"] = list(ids_["input_ids"])

    def collate(rows):
        longest = max(len(r["input_ids"]) for r in rows)
        fill = lambda name, value: torch.tensor(
            [r[name] + [value] * (longest - len(r[name])) for r in rows])
        return {"input_ids": fill("input_ids", 0), "labels": fill("labels", -100),
                "attention_mask": torch.tensor([[1] * len(r["input_ids"]) + [0] *
                                                (longest - len(r["input_ids"])) for r in rows])}

    for rows, passes in ((8, 1), (2, 4)):
        got = case.ours(records, "sft", rows, passes, 1e-3)
        case.compare(f"sft, {passes} passes, transformers' Trainer", got,
                     case.theirs(Trainer, TrainingArguments, ids, rows, passes, 1e-3,
                                 collator=collate))
        case.compare(f"sft, {passes} passes, TRL", got,
                     case.theirs(SFTTrainer, SFTConfig, ids, rows, passes, 1e-3))
    for name, (flags, schedule, arguments) in SCHEDULES.items():
        case.compare(
            f"sft, schedule {name}",
            case.ours(records, "sft", 8, rate=1e-3, schedule=flags, warmup=4),
            case.theirs(Trainer, TrainingArguments, ids, 8, rate=1e-3, schedule=schedule,
                        arguments=arguments, warmup=4, collator=collate))


def pairs(case):
    records = [{"prompt": case.words(6), "chosen": case.words(10), "rejected": case.words(10)}
               for _ in range(8)]
    records[0]["prompt"] += " lamp" * 40  # the prompt counts in ORPO's likelihood term
    given = [{**r, "prompt": ALPACA.format(r["prompt"])} for r in records]
    for kind, loss in (("dpo", "sigmoid"), ("ipo", "ipo"), ("hinge", "hinge")):
        for rows, passes in ((8, 1), (2, 4)):
            case.compare(
                f"{kind}, {passes} passes",
                case.ours(records, kind, rows, passes),
                case.theirs(DPOTrainer, DPOConfig, given, rows, passes, reference=True,
                            loss_type=[loss]))
    beta = case.random.uniform(0.05, 0.25)
    case.compare(
        f"dpo and sft, beta {beta:.3f}",
        case.ours(records, "dpo", 8, flags=["--beta", beta, "--sft_weight", 0.5]),
        case.theirs(DPOTrainer, DPOConfig, given, 8, reference=True, loss_type=["sigmoid", "sft"],
                    loss_weights=[1.0, 0.5], beta=beta))
    for rows, passes in ((8, 1), (2, 4)):
        case.compare(
            f"simpo, {passes} passes",
            case.ours(records, "simpo", rows, passes),
            case.theirs(CPOTrainer, CPOConfig, given, rows, passes, loss_type="simpo", cpo_alpha=0))
    case.compare(
        "simpo, smoothed",
        case.ours(records, "simpo", 8, flags=["--beta", 2, "--gamma", 1.1, "--label_smoothing",
                                              0.1, "--sft_weight", 0.3]),
        case.theirs(CPOTrainer, CPOConfig, given, 8, loss_type="simpo", cpo_alpha=0.3, beta=2.0,
                    simpo_gamma=1.1, label_smoothing=0.1))
    one, four = case.ours(records, "orpo", 8), case.ours(records, "orpo", 2, 4)
    theirs = case.theirs(ORPOTrainer, ORPOConfig, given, 8)
    case.compare("orpo", one, theirs)
    case.compare("orpo, 4 passes, against one pass of TRL", four, theirs)
    # TRL averages the means of the micro-batches, so short ones count as much as long ones.
    case.differs("ORPOTrainer's likelihood term depends on the passes", four,
                 case.theirs(ORPOTrainer, ORPOConfig, given, 2, 4))


def rated(case):
    # More desirable answers than others raise the mismatched ones, so that the baseline is not 0.
    records = [{"prompt": f"{i}: {case.words(6)}\n", "completion": case.words(10),
                "label": i % 4 < 3} for i in range(8)]
    case.compare("kto", one := case.ours(records, "kto", 8),
                 theirs := case.theirs(KTOTrainer, KTOConfig, records, 8, reference=True))
    check(f"{case.name}: kto's baseline", theirs[-1]["kl"] > 0, f"ends at {theirs[-1]['kl']:.4f}")
    weights = [case.random.uniform(0.5, 2) for _ in range(2)]
    case.compare(
        f"kto, beta 0.2, weights {weights[0]:.3f} and {weights[1]:.3f}",
        case.ours(records, "kto", 8, flags=["--beta", 0.2, "--desirable_weight", weights[0],
                                            "--undesirable_weight", weights[1]]),
        case.theirs(KTOTrainer, KTOConfig, records, 8, reference=True, beta=0.2,
                    desirable_weight=weights[0], undesirable_weight=weights[1]))
    four = case.ours(records, "kto", 2, 4)
    case.compare("kto, 4 passes, against one pass of TRL", four, theirs)
    # TRL mismatches the answers of each micro-batch and estimates the divergence from it.
    case.differs("KTOTrainer's baseline depends on the passes", four,
                 case.theirs(KTOTrainer, KTOConfig, records, 2, 4, reference=True))


def small(folder, kind, seed):
    seed = int.from_bytes(os.urandom(4), "big") if kind == "fresh" else 3 + seed
    print(f"{kind} seed {seed}", flush=True)
    case = Case(folder, kind, seed)
    for part in (likelihood, pairs, rated):
        part(case)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bar()
    disable_progress_bars()
    run(__doc__, ["fixed", "fresh"], small, lambda work: None)
