"""The sections of a recipe: every key with its type, its limits and what it means."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from luffy.formats import CLOSING, OPENING

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
    lora: bool = Field(
        False,
        description="With adapter.rank: vLLM gets the adapter alone after updates, and adds it to the base's products.",
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
        "(`policy.autocast`, `parallel.param_dtype`), else that of the policy. Another type than the policy's takes a "
        "copy of the model.",
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


AUTOCAST_FROM = 10_000_000  # parameters; below, turning numbers into bfloat16 costs what the products gain


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


class AdapterConfig(Section):
    """Low-rank adapters (LoRA): small matrices that are trained in place of the model's weights."""

    rank: Count | None = Field(None, description="Rank of the adapter; empty: none, all weights are trained.")
    alpha: Positive = Field(32.0, description="The adapter's part is multiplied by alpha / rank.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout before the adapter, in the update alone; 0 learns from what sampled."
    )
    targets: Names = Field((), description="Names of the linear layers that get one; empty: all of the blocks.")
    quantize: Literal["nf4"] | None = Field(
        None,
        description="nf4: the base's linear layers are held in 4 bits (QLoRA); empty: as policy.dtype says.",
    )

    @model_validator(mode="after")
    def _of_a_base(self) -> AdapterConfig:
        if self.quantize and self.rank is None:
            raise ValueError("quantize is for the base under an adapter: set adapter.rank, or leave it out")
        return self


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
