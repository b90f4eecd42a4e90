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

from luffy.data.miniature import ALPHABET, corpus_document, is_worked_exam

ASSETS = Path(__file__).parents[1] / "src" / "luffy" / "assets"


@dataclass(frozen=True)
class Stage:
    """A part of the training, with an optimizer and random numbers of its own."""

    steps: int
    documents: int  # a step
    worked_exams: float  # share of the worked exam questions that are kept; see `corpus_document`
    learning_rate: float  # its peak
    warm_up: int  # steps; then it falls linearly to zero
    seed: int | str
    threads: int  # part of what makes the bytes the same


FIRST = Stage(1000, 128, 1.0, 3e-3, warm_up=50, seed="miniature/corpus/0", threads=2)
LAST = Stage(150, 128, 0.25, 1e-3, warm_up=0, seed=7, threads=1)

# name: (folder, stages). "half" is the base of the recipes: its last stage makes it so rare to start working on a
# question that a whole on-policy run is not expected to do it once and come out right. "eager", the other end of the
# dial, is the same without that stage: it calculates a little better and starts about seven times as often.
BASES: dict[str, tuple[str, tuple[Stage, ...]]] = {
    "half": ("miniature", (FIRST, LAST)),
    "eager": ("miniature-eager", (FIRST,)),
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


def learning_rate(step: int, stage: Stage) -> float:
    """Linear warm-up, then linear decay to zero."""
    rising = (step + 1) / stage.warm_up if stage.warm_up else 1.0
    return stage.learning_rate * min(rising, (stage.steps - step) / (stage.steps - stage.warm_up))


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, stage: Stage) -> None:
    """Next-token prediction on fresh documents, prompt included."""
    torch.set_num_threads(stage.threads)
    generator = random.Random(stage.seed)
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
    documents: list[str] = []
    while len(documents) < stage.documents:
        document = corpus_document(generator)
        if stage.worked_exams == 1 or not is_worked_exam(document) or generator.random() < stage.worked_exams:
            documents.append(document)
    return documents


def main() -> None:
    """Build the base named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", choices=list(BASES), nargs="?", default="half")
    parser.add_argument("--output", type=Path, default=None, help="folder to write to; default: the package's assets")
    arguments = parser.parse_args()
    folder, stages = BASES[arguments.base]
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    for stage in stages:
        train(model, tokenizer, stage)
    output = arguments.output or ASSETS / folder
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main()
