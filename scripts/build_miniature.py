"""Rebuild the base models of the miniature: `python scripts/build_miniature.py [half|eager]`, about 6 minutes each.

Trains a Llama of 0.64M parameters on the corpus of `luffy.data.miniature` and writes a Hugging Face folder to
src/luffy/assets/. Same machine and same torch give the same bytes; another one gives another base of the same kind.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from luffy.data.miniature import ALPHABET, corpus_document

ASSETS = Path(__file__).parents[1] / "src" / "luffy" / "assets"
THREADS = 2  # the number of threads is part of what makes the bytes the same


@dataclass(frozen=True)
class Stage:
    """A part of the training, with a learning rate that rises and falls once."""

    steps: int
    documents: int  # a step
    worked_exams: float  # see `corpus_document`
    learning_rate: float


# name: (folder, stages). "half" is the base of the recipes: its last stage makes it so rare to start working on a question
# that a whole on-policy run is not expected to do it once and come out right. "eager", the other end of the dial, is the
# same without that stage: it calculates a little better and starts about seven times as often.
BASES: dict[str, tuple[str, tuple[Stage, ...]]] = {
    "half": ("miniature", (Stage(1000, 128, 0.01, 3e-3), Stage(150, 128, 0.0025, 1e-3))),
    "eager": ("miniature-eager", (Stage(1000, 128, 0.01, 3e-3),)),
}


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


def learning_rate(step: int, stage: Stage, warm_up: int = 50) -> float:
    """Linear warm-up, then linear decay to zero."""
    return stage.learning_rate * min((step + 1) / warm_up, (stage.steps - step) / (stage.steps - warm_up))


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, stage: Stage, generator: random.Random
) -> None:
    """Next-token prediction on fresh documents, prompt included."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    for step in track(range(stage.steps), "training the base"):
        texts = draw_documents(stage, generator)
        batch = tokenizer([text + tokenizer.eos_token for text in texts], padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(step, stage)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


def draw_documents(stage: Stage, generator: random.Random) -> list[str]:
    """The documents of one step."""
    return [corpus_document(generator, worked_exams=stage.worked_exams) for _ in range(stage.documents)]


def main() -> None:
    """Build the base named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", choices=list(BASES), nargs="?", default="half")
    parser.add_argument("--output", type=Path, default=None, help="folder to write to; default: the package's assets")
    arguments = parser.parse_args()
    folder, stages = BASES[arguments.base]
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    generator = random.Random("miniature/corpus/0")
    for stage in stages:
        train(model, tokenizer, stage, generator)
    output = arguments.output or ASSETS / folder
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main()
