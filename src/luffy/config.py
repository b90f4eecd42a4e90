"""The configuration of a run: typed, validated before anything is loaded, and explained by `luffy config`.

A recipe is a YAML file with the keys of `Config`. Overrides are `dotted.key=value`. What `methods:` says for the chosen
method is applied between the two, so that each method of a comparison runs with its own tuned settings:

    recipe  <  methods.<method> of the recipe  <  key=value on the command line
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from luffy.errors import ConfigError
from luffy.formats import CLOSING, OPENING, CompletionFormat
from luffy.redaction import secrets

MINIATURE = "miniature"

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]
TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
Trackers = Annotated[
    tuple[TrackerName, ...], BeforeValidator(lambda given: [given] if isinstance(given, str) else given or ())
]

# What may differ between the starts of one run: it does not change what the steps before it computed.
FREE_KEYS = (
    "rollout.vllm.",
    "output",
    "steps",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_best_checkpoints",
    "rollouts_every",
    "evaluation.",
    "methods",
    "tracker",
    "processes",
    "parallel.",
)


class Section(BaseModel):
    """A part of the configuration: no unknown keys, no change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MiniatureConfig(Section):
    """The dials of the built-in task; used when `data.train` is `miniature`."""

    problems: Count = Field(256, description="Number of training problems.")
    traced: int = Field(256, ge=0, description="How many of them carry an expert trace.")
    style: Literal["teacher", "base"] = Field("teacher", description="Wording of the traces: another's or the base's.")
    wrong: Fraction = Field(0.0, description="Share of traces with a wrong final answer.")
    shortest: int = Field(5, ge=1, le=20, description="Fewest operations in a training problem.")
    longest: int = Field(8, ge=1, le=20, description="Most operations in a training problem.")
    seed: int = Field(0, ge=0, description="Which training set is drawn; the evaluation sets never change.")

    @model_validator(mode="after")
    def _bounds(self) -> MiniatureConfig:
        if self.shortest > self.longest:
            raise ValueError(f"shortest ({self.shortest}) is larger than longest ({self.longest})")
        if self.traced > self.problems:
            raise ValueError(f"traced ({self.traced}) is larger than problems ({self.problems})")
        return self


class ColumnsConfig(Section):
    """Which column holds what, in data that has other names than ours; a dotted path reaches into a nested column."""

    prompt: str | None = Field(None, description="Column of the question: text or chat messages.")
    answer: str | None = Field(None, description="Column of the reference answer, e.g. reward_model.ground_truth.")
    id: str | None = Field(None, description="Column of a unique name of the problem.")
    source: str | None = Field(None, description="Column that says where a problem comes from.")
    traces: Names = Field((), description="Column, or list of columns, of solutions: texts, lists of texts, messages.")
    model: str | None = Field(None, description="Column that says who wrote the traces: one name, or one a trace.")
    logprobs: str | None = Field(
        None, description="Column of the traces' log-probs: numbers, or a list of them a trace."
    )

    @property
    def given(self) -> bool:
        """Whether any column is mapped."""
        return self != ColumnsConfig()


class DataConfig(Section):
    """Problems, their traces, and how a prompt is written."""

    train: str = Field(
        MINIATURE,
        description="JSONL, JSON, CSV or Parquet file, a folder saved by `datasets`, a hub name, or `miniature`.",
    )
    columns: ColumnsConfig = Field(default_factory=ColumnsConfig, description="Names of the columns, where not ours.")
    subset: str | None = Field(None, description="Configuration of a data set on the hub, where it has several.")
    split: str = Field("train", min_length=1, description="Split of a data set on the hub or in a saved folder.")
    template: Literal["auto", "chat", "think", "qwen_math", "simple", "none"] = Field(
        "auto",
        description="How a prompt is written: chat: the model's chat template; think: the paper's system prompt, the "
        "generation starting inside <think>; qwen_math: Qwen-Math's, answer in \\boxed{}; simple: `User: ... Answer: "
        "Let's think step by step.`; none: as it is; auto: chat where the tokenizer has a chat template, else none.",
    )
    thought_opening: str = Field(OPENING, min_length=1, description="Tag that the model's thoughts begin with.")
    thought_closing: str = Field(CLOSING, min_length=1, description="Tag that ends a thought; the answer follows it.")
    max_prompt_tokens: Count = Field(1024, description="Longest prompt, in tokens.")
    on_long_prompt: Literal["refuse", "drop"] = Field(
        "refuse", description="A prompt over the limit: stop or leave out."
    )
    on_bad_trace: Literal["refuse", "drop", "keep"] = Field(
        "drop", description="A trace that does not verify: stop, leave the trace out, or keep it (it earns reward 0)."
    )
    on_long_trace: Literal["refuse", "drop"] = Field(
        "drop", description="A trace longer than `rollout.max_tokens`: stop, or leave the trace out."
    )
    holdout: int = Field(
        0, ge=0, description="Problems kept out of training, chosen by their ids; as a benchmark they are `holdout`."
    )
    on_bad_row: Literal["refuse", "drop"] = Field(
        "refuse", description="A row that is not a problem: stop or leave out."
    )
    drop_solved: int = Field(
        0,
        ge=0,
        description="Leave a problem out once all its own rollouts were right in so many visits in a row; 0: never.",
    )
    miniature: MiniatureConfig = Field(default_factory=MiniatureConfig, description="Dials of the built-in task.")

    @model_validator(mode="after")
    def _tags(self) -> DataConfig:
        if self.template == "think" and (self.thought_opening, self.thought_closing) != (OPENING, CLOSING):
            raise ValueError(f"template 'think' asks for {OPENING} and {CLOSING}; for other tags set template to chat")
        return self


class RewardConfig(Section):
    """The verifier that turns a completion into reward 1 or 0."""

    kind: str = Field(
        "exact",
        description="Verifier: exact, number, math, choice, reasoning_gym, or a function named python:module:function.",
    )
    format: Literal["off", "closed_thought"] = Field(
        "off",
        description="Gate on the format: closed_thought gives reward 0 to a completion without `data.thought_closing` "
        "and grades what follows it, as the original code does.",
    )
    threshold: float = Field(
        1.0, gt=0, le=1, description="Score from which an answer of a reasoning_gym task is correct."
    )
    workers: int = Field(1, ge=0, le=256, description="Verifier processes; 0: in this process, without deadline.")
    deadline: Positive = Field(5.0, description="Seconds a verification may take before it is stopped.")
    memory: Positive | None = Field(
        2.0, description="GiB a verifier process may take on top of what it starts with (Linux); empty: no limit."
    )
    max_failures: Fraction = Field(0.5, description="Share of failed verifications in a step that stops the run.")


class VllmConfig(Section):
    """vLLM, where `rollout.engine` is vllm (docs/engines.md)."""

    memory_share: Fraction = Field(0.3, description="Share of the device's memory for its weights and cache.")
    cache_gib: Positive | None = Field(
        None,
        description="Memory for keys and values in GiB; empty: the rest of memory_share.",
    )
    max_sequences: Count = Field(256, description="Completions that are decoded at once.")
    max_length: Count | None = Field(
        None, description="Longest prompt and completion together; empty: data.max_prompt_tokens and the completion."
    )
    eager: bool = Field(False, description="Compile nothing: a faster start, slower decoding.")
    sleep: bool = Field(
        False,
        description="vllm: give its memory to the update while nothing is generated; the weights wait on the host.",
    )
    server: str | None = Field(
        None, description="vllm_server: address of a running one, such as http://localhost:8000; empty: one is started."
    )
    exchange: str | None = Field(
        None, description="vllm_server: folder that both sides see, for weights on their way; empty: in memory here."
    )
    bucket_mib: Count = Field(256, description="vllm_server: MiB of weights that are handed over at once.")
    patience: Positive = Field(
        900.0, description="Seconds without an answer: a server is asked again that long, then the run stops."
    )


class RolloutConfig(Section):
    """How the groups are made."""

    engine: Literal["transformers", "vllm", "vllm_server"] = Field(
        "transformers",
        description="What generates; vllm: vLLM in this process; vllm_server: in another one (docs/engines.md).",
    )
    group_size: int = Field(8, ge=2, description="Rollouts a problem, traces included.")
    traces: int = Field(1, ge=0, description="How many of them are traces, for methods that learn from traces in RL.")
    temperature: Positive = Field(1.0, description="Sampling temperature; log-probs are taken at it.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling; 1 samples from the whole distribution.")
    max_tokens: Count = Field(512, description="Longest completion, in tokens; a longer one is cut and earns nothing.")
    batch_tokens: Count = Field(65536, description="Tokens (rows x length) that may be generated at once.")
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        "auto",
        description="Type of the weights that generate; auto: bfloat16 where the update's products are "
        "(`policy.autocast`), else that of the policy. Another type than the policy's takes a copy of the model.",
    )
    ahead: int = Field(
        0, ge=0, le=1, description="1: generate the next step's groups while the policy is updated, one step behind it."
    )
    device: str | None = Field(
        None, description="Device of the copy that generates ahead: cpu, cuda or cuda:N; empty: that of the policy."
    )
    redraw: int = Field(
        0, ge=0, description="How often a step may draw problems in place of those without signal (DAPO); 0: never."
    )

    vllm: VllmConfig = Field(default_factory=VllmConfig)

    @model_validator(mode="after")
    def _what_vllm_takes(self) -> RolloutConfig:
        if self.engine == "transformers":
            return self
        if self.device is not None:
            raise ValueError("device is that of the transformers engine's copy; vLLM takes the policy's")
        if self.top_p < 1 and self.temperature != 1:
            raise ValueError(
                f"engine {self.engine!r} gives no log-probs before top-p at a temperature other than 1: set "
                "rollout.top_p to 1, rollout.temperature to 1, or rollout.engine to transformers"
            )
        if self.dtype == "float64":
            raise ValueError(f"engine {self.engine!r} has no float64: set rollout.dtype to float32 or bfloat16")
        if self.vllm.sleep and (self.ahead or self.engine == "vllm_server"):
            raise ValueError("vllm.sleep is for rollout.engine=vllm with rollout.ahead=0: others have no time to sleep")
        if self.engine == "vllm" and self.vllm.server:
            raise ValueError("vllm.server is the address for rollout.engine=vllm_server")
        return self

    @model_validator(mode="after")
    def _room(self) -> RolloutConfig:
        if self.device is not None and not self.ahead:
            raise ValueError("device is that of the copy that generates ahead: set rollout.ahead to 1")
        if self.traces >= self.group_size:
            raise ValueError(
                f"traces ({self.traces}) must be fewer than group_size ({self.group_size}): a group needs own rollouts"
            )
        return self


class ObjectiveConfig(Section):
    """The constants of the objective (docs/algorithm.md)."""

    gamma: Positive = Field(0.1, description="Policy shaping: f(rho) = rho / (rho + gamma).")
    exponent: Positive = Field(0.5, description="Exponent of the `power` shaping.")
    shaping: Literal["none", "regularized", "sqrt", "power", "log"] | None = Field(
        None, description="Replaces the method's shaping of trace tokens; a name in SHAPINGS."
    )
    clip_range: Positive = Field(0.2, description="Clip range of PPO's surrogate, for methods that clip.")
    normalization: Literal["constant", "token", "sequence"] = Field(
        "constant", description="Divisor Z: sequences x rollout.max_tokens, all tokens, or each sequence's own length."
    )
    scale: Literal["none", "std"] = Field("none", description="Divide advantages by the group's standard deviation?")
    entropy_coefficient: NotNegative = Field(0.0, description="Entropy bonus (the paper says 0.01, its script 0.001).")
    kl_coefficient: NotNegative = Field(0.0, description="Penalty on the KL divergence from the base model.")
    sft_coefficient: NotNegative = Field(1.0, description="Weight of the supervised term of `rl_sft`.")
    importance_cap: Positive | None = Field(
        None, description="Truncated importance sampling: cap on trainer/engine probability ratio; empty: off."
    )


class OptimizerConfig(Section):
    """AdamW and its schedule, for the reinforcement phase (and, unless `sft` says otherwise, the supervised one)."""

    learning_rate: Positive = Field(1e-6, description="Peak learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="After the warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    weight_decay: NotNegative = Field(0.0, description="AdamW's weight decay.")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first beta.")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's second beta.")
    max_gradient_norm: Positive = Field(1.0, description="Gradients are scaled down to this norm.")


class SFTConfig(Section):
    """The supervised phase of `sft` and `sft_rl`."""

    steps: Count = Field(100, description="Optimizer steps of the SFT phase of `sft_rl` (`sft` takes `steps`).")
    batch_size: Count = Field(32, description="Traces an optimizer step.")
    learning_rate: Positive = Field(1e-5, description="Peak learning rate of the supervised phase.")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="After the warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")


class PolicyConfig(Section):
    """How the model is held and computed."""

    dtype: Literal["float32", "bfloat16", "float64"] = Field("float32", description="Type of the weights.")
    autocast: Literal["auto", "none", "bfloat16"] = Field(
        "auto",
        description="Type of the update's matrix products; auto: bfloat16 for a large model where the processor or GPU "
        "has units for it; none: the weights' type.",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass: less memory.")
    token_budget: Count = Field(4096, description="Tokens a micro-batch of the update may compute, padding counted.")
    chunk_elements: Count = Field(2**24, description="Logits (tokens x vocabulary) that may exist at once.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    context_length: Count | None = Field(
        None, description="Positions the model may use, in place of its own number (max_position_embeddings)."
    )
    rope_theta: Positive | None = Field(
        None, description="Base of its rotary embedding, to be raised with the context; empty: its own."
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model folder.")
    allow_pickle: bool = Field(False, description="Load weights that are stored as pickles, which can run code.")


class ParallelConfig(Section):
    """How several processes train together (docs/processes.md)."""

    timeout: Positive = Field(1800.0, description="Seconds a process waits for the others before the run stops.")
    sharding: Literal["none", "full"] = Field(
        "none",
        description="full: weights, gradients and AdamW's moments are split over the processes (FSDP2, ZeRO stage 3); "
        "none: each process holds all of them (DDP).",
    )
    param_dtype: Literal["none", "bfloat16"] = Field(
        "none",
        description="With sharding: type in which weights are gathered and multiplied; none: their own. Gradients are "
        "summed in float32, the weights that the optimizer changes keep `policy.dtype`.",
    )

    @model_validator(mode="after")
    def _sharded(self) -> ParallelConfig:
        if self.param_dtype != "none" and self.sharding == "none":
            raise ValueError("param_dtype is that of split weights: set parallel.sharding to full")
        return self


class AdapterConfig(Section):
    """Low-rank adapters (LoRA): small matrices that are trained in place of the model's weights."""

    rank: Count | None = Field(None, description="Rank of the adapter; empty: none, all weights are trained.")
    alpha: Positive = Field(32.0, description="The adapter's part is multiplied by alpha / rank.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout before the adapter, in the update alone; 0 learns from what sampled."
    )
    targets: Names = Field((), description="Names of the linear layers that get one; empty: all of the blocks.")


class EvaluationConfig(Section):
    """What is measured, when, and how it is sampled."""

    benchmarks: Names = Field((), description="NAME or FILE, with @k for k samples a problem; at start and end.")
    watch: Names = Field((), description="Those of them that are also measured every `every` steps.")
    every: int = Field(0, ge=0, description="Steps between evaluations of `watch`; 0: only at start and end.")
    limit: Count | None = Field(None, description="Problems taken from each benchmark; empty: all.")
    temperature: NotNegative = Field(0.0, description="0 is greedy decoding; needed above 0 for @k with k > 1.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the most likely tokens that hold this probability.")
    max_tokens: Count | None = Field(None, description="Longest completion; empty: rollout.max_tokens.")
    source: str | None = Field(None, description="File or folder to take public benchmarks from; empty: the hub.")
    engine: Literal["transformers", "vllm", "endpoint"] = Field(
        "transformers", description="What `luffy eval` generates with; endpoint: any OpenAI-compatible server."
    )
    endpoint: str | None = Field(None, description="Address of that server, such as http://localhost:8000/v1.")
    api_key_variable: str = Field("OPENAI_API_KEY", description="Environment variable that holds the server's key.")
    concurrency: Count = Field(32, description="Requests to the server at a time.")

    @model_validator(mode="after")
    def _consistent(self) -> EvaluationConfig:
        if self.engine == "endpoint" and not self.endpoint:
            raise ValueError("engine 'endpoint' needs the server's address: evaluation.endpoint=http://HOST:PORT/v1")
        if self.endpoint and ("@" in self.endpoint or "?" in self.endpoint):  # said without the value
            raise ValueError(
                "endpoint must be an address without user, password or `?...`: the key belongs into the environment "
                "variable that evaluation.api_key_variable names"
            )
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_variable):
            raise ValueError(
                "api_key_variable is the name of an environment variable in capital letters, such as OPENAI_API_KEY, "
                "and never the key itself"
            )
        unknown = [name for name in self.watch if name not in self.benchmarks]
        if unknown:
            raise ValueError(f"watch names {unknown[0]!r}, which is not in benchmarks")
        sampled = [name for name in self.benchmarks if "@" in name and not name.endswith("@1")]
        if sampled and self.temperature == 0:
            raise ValueError(f"{sampled[0]!r} asks for several samples, which temperature 0 makes all alike")
        return self


class Config(Section):
    """Everything that defines a run."""

    method: str = Field("luffy", description="One of METHODS: luffy, on_policy, mixed, sft, sft_rl, rl_sft, ...")
    model: str = Field(MINIATURE, description="Model folder or hub name; built in: miniature, miniature-eager.")
    output: str = Field("runs/latest", min_length=1, description="The run folder.")
    seed: int = Field(0, ge=0, description="Seed of everything that is drawn.")
    steps: Count = Field(100, description="Steps of the last phase: RL steps, or SFT steps for `sft`.")
    problems_per_step: Count = Field(16, description="Problems drawn a step, hence groups.")
    updates_per_step: Count = Field(1, description="Optimizer steps a batch of groups is split into (the paper: 2).")
    checkpoint_every: int = Field(0, ge=0, description="Steps between checkpoints; 0: only at the end of a phase.")
    keep_checkpoints: Count = Field(2, description="Newest checkpoints that are kept.")
    keep_best_checkpoints: int = Field(
        0, ge=0, description="Checkpoints kept beside them for the best accuracy on the first set of evaluation.watch."
    )
    rollouts_every: int = Field(10, ge=0, description="Steps between saved rollouts; 0: never.")
    tracker: Trackers = Field(
        (),
        description="Where metrics go besides metrics.jsonl: tensorboard, wandb, trackio, mlflow, or a list of them.",
    )
    processes: Count | None = Field(
        None, description="Training processes on this machine; empty: as many as were started (accelerate, torchrun)."
    )
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    sft: SFTConfig = Field(default_factory=SFTConfig)
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Per method: `dotted.key: value` that replace the above when it is chosen."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        from luffy.algorithm.methods import METHODS

        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}.{nearest(self.method, METHODS)}")
        if METHODS[self.method].traces != "none" and self.rollout.traces == 0:
            raise ValueError(f"method {self.method!r} learns from traces, but rollout.traces is 0")
        if self.rollout.ahead and self.objective.importance_cap is None:
            raise ValueError(
                "rollout.ahead=1 learns from rollouts of the policy one step before, which truncated importance "
                "sampling corrects: set objective.importance_cap, for example to 2"
            )
        if self.keep_best_checkpoints and not (self.evaluation.watch and self.evaluation.every):
            raise ValueError(
                f"keep_best_checkpoints={self.keep_best_checkpoints} needs a score to go by: set evaluation.watch and "
                "evaluation.every, and checkpoint_every to the same number of steps"
            )
        if self.parallel.sharding == "full" and self.adapter.rank is not None:
            raise ValueError(
                "parallel.sharding=full does not split a model with an adapter yet: leave one of the two out"
            )
        groups = self.problems_per_step
        if (self.processes or 1) > groups:
            raise ValueError(
                f"processes ({self.processes}) is larger than problems_per_step ({groups}): some would never generate"
            )
        if self.updates_per_step > groups:
            raise ValueError(f"updates_per_step ({self.updates_per_step}) is larger than problems_per_step ({groups})")
        return self


def completion_format(config: Config) -> CompletionFormat:
    """What a completion looks like by the configuration; whether the prompt opens the thought, a prompt must show."""
    return CompletionFormat(
        opening=config.data.thought_opening,
        closing=config.data.thought_closing,
        gated=config.reward.format == "closed_thought",
        answer_marker="\\boxed" if config.data.template in ("think", "qwen_math") else "",
    )


def load_config(path: str | Path | None = None, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """Read a recipe, apply the overrides, validate.

    path: a YAML file, the config.yaml of a run folder, or None for the defaults. overrides: `dotted.key=value` strings,
    values in YAML syntax, or a mapping of dotted keys to values. Raises ConfigError naming file, key and the nearest
    right name.
    """
    where = str(path) if path is not None else "configuration"
    tree = _read_yaml(Path(path)) if path is not None else {}
    given = dict(overrides) if isinstance(overrides, Mapping) else dict(map(parse_override, overrides))
    tree["methods"] = _settings_of_methods(tree.get("methods"), given, where)
    method = str(given.get("method", tree.get("method", Config.model_fields["method"].default)))
    for key, value in tree["methods"].get(method, {}).items():
        _assign(tree, key, value, f"{where}: methods.{method}")
    for key, value in given.items():
        if not key.startswith("methods."):
            _assign(tree, key, value, "override")
    config = _validate(tree, where)
    _refuse_secrets(config, where)
    return config


def _refuse_secrets(config: Config, where: str) -> None:
    """A configuration is written into run folders, reports and model cards: no secret may stand in it."""
    values = {key: str(value) for key, value in flatten(config).items()}
    for variable, secret in secrets().items():
        for key, value in values.items():
            if secret in value:
                raise ConfigError(
                    f"{where}: {key} holds the value of the environment variable {variable}, which would then stand in "
                    "config.yaml. Leave it out: what needs it takes it from the environment."
                )


def parse_override(text: str) -> tuple[str, Any]:
    """Split `dotted.key=value` at the first `=`; the value is YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {text!r}: expected key=value, for example steps=50.")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not valid YAML ({_yaml_problem(error)}).") from None
    except (RecursionError, ValueError) as error:  # ValueError: a date that there is not
        raise ConfigError(f"override {text[:80]!r}: the value cannot be read ({_unread(error)}).") from None


def flatten(config: BaseModel, prefix: str = "") -> dict[str, Any]:
    """The configuration as dotted keys and plain values."""
    flat: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}": value}
    return flat


def differing_keys(before: Config, now: Config) -> list[str]:
    """The keys in which two configurations of one run folder differ, without those that may."""
    old, new = flatten(before), flatten(now)
    return [key for key in new if new[key] != old[key] and not key.startswith(FREE_KEYS)]


def describe() -> list[tuple[str, str, str]]:
    """Every key with its default and its one-sentence explanation, in the order of the schema."""
    return list(_describe(Config, ""))


def _describe(section: type[BaseModel], prefix: str) -> Iterable[tuple[str, str, str]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _describe(field.annotation, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            text = "-" if default in (None, (), {}) else str(default)
            yield f"{prefix}{name}", text, field.description or ""


def known_keys() -> list[str]:
    """All dotted keys."""
    return [key for key, _, _ in describe()]


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean '...'?` for the closest known word, or an empty string.

    Of dotted keys the last part counts most: it may be right under a wrong section, cut short, or its initials (`lr`).
    """
    section, _, last = word.rpartition(".")
    names = sorted(known, key=lambda name: name.rpartition(".")[0] != section)  # those of the same section first
    tails = [name.rpartition(".")[2] for name in names]
    close = [name for name, tail in zip(names, tails, strict=True) if last in (tail, _initials(tail))]
    close = close or [name for name, tail in zip(names, tails, strict=True) if len(last) > 2 and tail.startswith(last)]
    close = close or difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    close = close or [names[tails.index(tail)] for tail in difflib.get_close_matches(last, tails, n=1, cutoff=0.6)]
    return f" Did you mean {close[0]!r}?" if close else ""


def _initials(name: str) -> str:
    """`lr` of `learning_rate`; nothing for a name of one word."""
    words = name.split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such recipe file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    try:
        tree = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({_yaml_problem(error)}).") from None
    except (RecursionError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({_unread(error)}).") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got a {type(tree).__name__}.")
    return tree["config"] if isinstance(tree.get("config"), dict) else tree  # the record in a run folder


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, which plain YAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _unread(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}: {problem}" if mark else str(problem)


def _settings_of_methods(recipe: Any, given: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """What the recipe says under `methods`, changed by overrides `methods.NAME.KEY`; names and keys are known ones."""
    if recipe is not None and not isinstance(recipe, dict):
        raise ConfigError(f"{where}: 'methods' expects method names with settings below them.")
    settings: dict[str, dict[str, Any]] = {}
    for method, changes in (recipe or {}).items():
        if not isinstance(changes, dict | None):
            kind = type(changes).__name__
            raise ConfigError(f"{where}: methods.{method}: expected `dotted.key: value` pairs, got {kind}.")
        for key, value in (changes or {}).items():
            _check_of_method(str(method), str(key), f"{where}: methods.{method}")
            settings.setdefault(str(method), {})[str(key)] = value
    for name, value in given.items():
        if name.startswith("methods."):
            method, _, key = name.removeprefix("methods.").partition(".")
            _check_of_method(method, key, f"override {name!r}")
            settings.setdefault(method, {})[key] = value
    return settings


def _check_of_method(method: str, key: str, origin: str) -> None:
    from luffy.algorithm.methods import METHODS

    if method not in METHODS:
        raise ConfigError(f"{origin}: unknown method {method!r}.{nearest(method, METHODS)}")
    known = [one for one in known_keys() if one not in ("method", "methods")]
    if key not in known:
        raise ConfigError(f"{origin}: unknown key {key!r}.{nearest(key, known)}")


def _assign(tree: dict[str, Any], key: str, value: Any, origin: str) -> None:
    """Set a dotted key in the nested tree."""
    known = known_keys()
    if key not in known:
        raise ConfigError(f"{origin}: unknown key {key!r}.{nearest(key, known)}")
    *sections, last = key.split(".")
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        if not isinstance(tree[section], dict):
            raise ConfigError(f"{origin}: {key!r} cannot be set, {section!r} is not a section in the recipe.")
        tree = tree[section]
    tree[last] = value


def _validate(tree: dict[str, Any], where: str) -> Config:
    given = {key: value for key, value in tree.items() if value is not None or key not in _sections()}
    try:
        return Config.model_validate(given)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item, where) for item in error.errors())) from None


def _sections() -> set[str]:
    """Keys that hold other keys; one with nothing below it in a recipe is as good as absent."""
    return {key.partition(".")[0] for key in known_keys() if "." in key}


def _explain(item: Any, where: str) -> str:
    """One validation error as a sentence."""
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}.{nearest(key, known_keys())}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{where}: {key + ': ' if key else ''}{message.rstrip('.')}{'' if message.endswith('?') else '.'}"
    return f"{where}: '{key}' {message[0].lower()}{message[1:]}, got {item['input']!r}."
