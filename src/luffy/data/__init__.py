"""Problems with checkable answers and expert traces: read, checked, written as prompts, turned into tokens.

    load_training_problems(config.data)      what `data.train` names
    load_benchmark("miniature/hard")         what `evaluation.benchmarks` names, after `parse_benchmark`
    prepare_problems(loaded, tokenizer, ...) everything tokenised and verified once, with a report of what was left out
    choice_problem(id, question, options, ...)  a multiple-choice problem, its options shuffled by a seed
    check_file(path, ...), write_fixed(...)  for `luffy data check`; show_problem(...) for `luffy data show`
    prepare_public("gsm8k", ...)             for `luffy data prepare`

Nothing here imports torch or transformers: a tokenizer is an argument.
"""

from luffy.data.benchmarks import HOLDOUT, benchmark_names, check_benchmark_name, load_benchmark, parse_benchmark
from luffy.data.check import check_file
from luffy.data.check_report import CheckReport
from luffy.data.choices import choice_problem
from luffy.data.fix import left_out_path, write_fixed
from luffy.data.load import DroppedRow, LoadedProblems, hold_out, load_problems, load_training_problems
from luffy.data.prepare import EncodedProblem, EncodedTrace, PreparationReport, PreparedProblems, prepare_problems
from luffy.data.prepare_public import PreparedSet, prepare_public
from luffy.data.prompts import encode_prompt, encode_trace, render_prompt
from luffy.data.public_benchmarks import PUBLIC_BENCHMARKS, FoundProblems
from luffy.data.readers import check_data_name
from luffy.data.show import show_problem

__all__ = [
    "HOLDOUT",
    "PUBLIC_BENCHMARKS",
    "CheckReport",
    "DroppedRow",
    "EncodedProblem",
    "EncodedTrace",
    "FoundProblems",
    "LoadedProblems",
    "PreparationReport",
    "PreparedProblems",
    "PreparedSet",
    "benchmark_names",
    "check_benchmark_name",
    "check_data_name",
    "check_file",
    "choice_problem",
    "encode_prompt",
    "encode_trace",
    "hold_out",
    "left_out_path",
    "load_benchmark",
    "load_problems",
    "load_training_problems",
    "parse_benchmark",
    "prepare_problems",
    "prepare_public",
    "render_prompt",
    "show_problem",
    "write_fixed",
]
