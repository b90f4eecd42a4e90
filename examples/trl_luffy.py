"""LUFFY inside TRL's GRPOTrainer, on the miniature: nothing to download, and a CPU will do.

    pip install 'luffy-rl[trl]'
    python examples/trl_luffy.py

Prints the share of right answers before and after. Of one's own: any model, a data set with the columns `prompt` and
`traces` (and what the reward function needs), any reward function of TRL.
"""

import argparse
import tempfile

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from luffy.data.miniature import evaluation_problems, training_problems
from luffy.integrations.trl import LuffyTrainer
from luffy.policy import model_folder


def correct(completions, answer, **_):
    """1 for a completion that ends in the right answer, else 0; the traces are graded by it, too."""
    return [float(text.rpartition("#")[2] == right) for text, right in zip(completions, answer, strict=True)]


def main():
    """Train and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--method", default="luffy", help="luffy, luffy_clip, mixed, on_policy or on_policy_shaping")
    parser.add_argument("--problems", type=int, default=100, help="that are measured on, before and after")
    arguments = parser.parse_args()

    problems = training_problems(problems=256, traced=256, style="teacher", wrong=0.0, operations=(5, 8), seed=0)
    train = [{"prompt": one.prompt, "answer": one.answer, "traces": [one.traces[0].text]} for one in problems]
    hard = [{"prompt": one.prompt, "answer": one.answer} for one in evaluation_problems("hard", arguments.problems)]

    with tempfile.TemporaryDirectory() as folder:
        trainer = LuffyTrainer(
            model=AutoModelForCausalLM.from_pretrained(model_folder("miniature")),
            processing_class=AutoTokenizer.from_pretrained(model_folder("miniature")),
            reward_funcs=correct,
            train_dataset=Dataset.from_list(train),
            eval_dataset=Dataset.from_list(hard),
            method=arguments.method,
            args=GRPOConfig(
                output_dir=folder,
                loss_type="dr_grpo",  # constant divisor, as in the paper's experiments
                scale_rewards="none",  # and no division by the standard deviation
                beta=0.0,
                num_generations=8,  # of them one trace
                num_generations_eval=1,
                per_device_train_batch_size=64,
                per_device_eval_batch_size=100,
                max_completion_length=84,
                max_steps=arguments.steps,
                learning_rate=1e-4,
                lr_scheduler_type="constant",
                logging_steps=10,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                bf16=False,
                activation_checkpointing=False,
            ),
        )
        before = trainer.evaluate()["eval_reward"]
        trainer.train()
        after = trainer.evaluate()["eval_reward"]
    print(f"{arguments.problems} hard problems, right: {before:.0%} before, {after:.0%} after {arguments.steps} steps")


if __name__ == "__main__":
    main()
