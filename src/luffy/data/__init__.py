"""Problems with checkable answers and expert traces: read, checked, written as prompts, turned into tokens.

    load_training_problems(config.data)      what `data.train` names
    load_benchmark("miniature/hard")         what `evaluation.benchmarks` names, after `parse_benchmark`
    prepare_problems(loaded, tokenizer, ...) everything tokenised and verified once, with a report of what was left out
    choice_problem(id, question, options, ...)  a multiple-choice problem, its options shuffled by a seed
    check_file(path, ...), show_problem(...) for `luffy data check` and `luffy data show`

Nothing here imports torch or transformers: a tokenizer is an argument.
"""

from luffy.data.benchmarks import benchmark_names, load_benchmark, parse_benchmark
from luffy.data.check import CheckReport, check_file
from luffy.data.choices import choice_problem
from luffy.data.load import DroppedRow, LoadedProblems, load_problems, load_training_problems
from luffy.data.prepare import EncodedProblem, EncodedTrace, PreparationReport, PreparedProblems, prepare_problems
from luffy.data.prompts import encode_prompt, encode_trace, render_prompt
from luffy.data.show import show_problem

__all__ = [
    "CheckReport",
    "DroppedRow",
    "EncodedProblem",
    "EncodedTrace",
    "LoadedProblems",
    "PreparationReport",
    "PreparedProblems",
    "benchmark_names",
    "check_file",
    "choice_problem",
    "encode_prompt",
    "encode_trace",
    "load_benchmark",
    "load_problems",
    "load_training_problems",
    "parse_benchmark",
    "prepare_problems",
    "render_prompt",
    "show_problem",
]
