"""Rebuild the base models of the miniature: `python scripts/build_miniature.py`, about 12 minutes on one core.

Trains a Llama of 0.64M parameters on corpora of `luffy.data.miniature` and writes Hugging Face folders to
src/luffy/assets/. Same kind of machine and same torch give the same bytes; another one gives other bases of the same
kind.
"""

from __future__ import annotations

import argparse
import copy
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from luffy.data.miniature import ALPHABET, Corpus

ASSETS = Path(__file__).parents[1] / "src" / "luffy" / "assets"


@dataclass(frozen=True)
class Stage:
    """A part of the training, with an optimizer and random numbers of its own."""

    corpus: Corpus
    steps: int
    learning_rate: float  # its peak; it falls linearly to zero
    warm_up: int  # steps


# Both learn to calculate from chains worked out under W, while questions are answered at once; then, briefly, to begin
# on a question and to break off. Briefly: a base that has practised on questions for long has nothing left to learn.
FIRST = Stage(Corpus(perseverance=0.0, slips=0.0, teachers=0.0), 1000, 3e-3, warm_up=50)
LAST = {
    # The base of the recipes: a sample is not expected to work a hard question (5 to 8 operations) out, ever.
    "miniature": Stage(Corpus(perseverance=0.05, slips=0.4, teachers=0.05), 300, 1e-3, warm_up=0),
    # The other end of the dial: it goes on often enough for on-policy RL to find a success.
    "miniature-eager": Stage(Corpus(perseverance=0.3, slips=0.1, teachers=0.05), 300, 1e-3, warm_up=0),
}
DOCUMENTS = 128  # a step


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a character."""
    special = ["<pad>", "<eos>"]
    vocabulary = {token: index for index, token in enumerate([*special, *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 0.64M parameters with fresh weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            initializer_range=0.06,  # 0.02 is made for wider models; here it costs a third of the steps
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def learning_rate(step: int, stage: Stage) -> float:
    """Linear warm-up, then linear decay to zero."""
    rising = (step + 1) / stage.warm_up if stage.warm_up else 1.0
    return stage.learning_rate * min(rising, (stage.steps - step) / (stage.steps - stage.warm_up))


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, stage: Stage) -> None:
    """Next-token prediction on fresh documents, prompt included."""
    generator = random.Random("miniature/corpus/0")
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    for step in track(range(stage.steps), "training the base"):
        texts = [stage.corpus.document(generator) + tokenizer.eos_token for _ in range(DOCUMENTS)]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(step, stage)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


def main() -> None:
    """Build both bases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ASSETS, help="folder to write to; default: the package's assets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # part of what makes the bytes the same
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    common = build_model(tokenizer)
    train(common, tokenizer, FIRST)
    for name, stage in LAST.items():
        model = copy.deepcopy(common)
        train(model, tokenizer, stage)
        model.save_pretrained(arguments.output / name)
        tokenizer.save_pretrained(arguments.output / name)


if __name__ == "__main__":
    main()
