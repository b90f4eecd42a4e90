"""Live progress at the prompt: the few numbers that matter, and a believable time left; plain lines in a pipe."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from luffy.collection import CollectionReport
    from luffy.comparison.runner import Comparison, Job

LINES_IN_A_PIPE = 20  # a run prints about this many lines when nobody watches
SECONDS_IN_A_PIPE = 10.0  # between two lines about the rows of a file

SHOWN = {
    "reward": "reward/on_policy",
    "accuracy": "accuracy",  # the newest on the first watched set
    "trace adv.": "guidance/trace_advantage",
    "entropy": "policy/entropy",
    "length": "completion/length",
    "loss": "update/loss",
}


def shown_numbers(metrics: dict[str, Any]) -> str:
    """The numbers of a step that are worth a glance; those that do not exist are left out."""
    parts = [f"{name} {_short(metrics[key])}" for name, key in SHOWN.items() if key in metrics]
    return "  ".join(parts)


class TimeLeft:
    """How long the rest takes, at the pace of the latest steps; the first one, which warms up, is not counted."""

    def __init__(self, window: int = 50) -> None:
        """window: steps that the pace is taken from; evaluations and checkpoints between them count."""
        self.marks: deque[tuple[float, int]] = deque(maxlen=window + 1)

    def after(self, step: int, steps: int, now: float) -> float | None:
        """Seconds that are left after a step of `steps`; None while nothing is known. now: in seconds."""
        self.marks.append((now, step))
        began, first = self.marks[0]
        return (now - began) / (step - first) * (steps - step) if step > first else None


def shown_time(seconds: float | None) -> str:
    """`4:05`, `1:02:03`, or `?` while it is not known."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _NumbersBelow(Progress):
    """Bars with the numbers of each on a line of their own: beside it they would squeeze step and time left away."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bars, then the numbers; what does not fit into the width is cut off at the end."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(task.fields["numbers"], no_wrap=True, overflow="ellipsis")


class TrainingProgress:
    """A bar for one run on a terminal; now and then a line elsewhere."""

    def __init__(self, console: Console, method: str) -> None:
        """method: shown beside the bar."""
        self.console, self.method = console, method
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.time_left = TimeLeft()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self.bar = _NumbersBelow(*columns, TextColumn("{task.fields[left]} left"), console=self.console)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def on_step(self, step: int, steps: int, metrics: dict[str, Any]) -> None:
        """Show a step."""
        numbers = shown_numbers(metrics)
        left = shown_time(self.time_left.after(step, steps, time.monotonic()))
        if self.bar:
            if self.task is None:
                self.task = self.bar.add_task(self.method, total=steps, numbers="", left="?")
            self.bar.update(self.task, completed=step, numbers=numbers, left=left)
        elif step == steps or step % max(1, steps // LINES_IN_A_PIPE) == 0:
            self.console.print(f"step {step}/{steps}  {numbers}  {left} left", highlight=False, soft_wrap=True)


class ComparisonProgress:
    """A table of all runs on a terminal; a line for each run that ends elsewhere."""

    def __init__(self, console: Console) -> None:
        """console: where it is shown."""
        self.console = console
        self.live = Live(console=console, refresh_per_second=2) if console.is_terminal else None
        self.began = time.monotonic()
        self.before: float | None = None  # share of the work that earlier starts had done
        self.reported: set[str] = set()

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def on_poll(self, comparison: Comparison) -> None:
        """Show where all runs stand."""
        latest = {id(job): job.latest() for job in comparison.jobs}
        left = self._time_left(comparison, latest)
        if self.live:
            self.live.update(_table(comparison, latest, left))
            return
        for job in comparison.jobs:
            name = f"{job.method}, seed {job.seed}"
            if job.finished and name not in self.reported:
                self.reported.add(name)
                done = f"{len(self.reported)}/{len(comparison.jobs)}"
                line = f"{done} {name}: {shown_numbers(latest[id(job)])}  {left} left"
                self.console.print(line, highlight=False, soft_wrap=True)

    def _time_left(self, comparison: Comparison, latest: dict[int, dict[str, Any]]) -> str:
        total = sum(job.steps for job in comparison.jobs)
        done = sum(min(latest[id(job)].get("step", 0), job.steps) for job in comparison.jobs) / total
        if self.before is None:
            self.before = done
        if done <= self.before:
            return "?"
        return shown_time((time.monotonic() - self.began) / (done - self.before) * (1 - done))


class RowsProgress:
    """A bar over the rows of a file on a terminal; a line every `SECONDS_IN_A_PIPE` elsewhere."""

    def __init__(self, console: Console, what: str) -> None:
        """what: is done with the rows, such as `checking`."""
        self.console, self.what = console, what
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        rows = TextColumn("{task.fields[rows]} rows")
        self.bar = Progress(*columns, rows, console=console, disable=not console.is_terminal, transient=True)
        self.task = self.bar.add_task(what, total=None, rows=0)
        self.began = self.reported = time.monotonic()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def on_rows(self, rows: int, share: float | None) -> None:
        """Show how far it is. share: of all rows, 0 to 1, where known."""
        self.bar.update(self.task, completed=share or 0.0, total=None if share is None else 1.0, rows=rows)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.reported >= SECONDS_IN_A_PIPE:
            self.reported = now
            left = f", {shown_time((now - self.began) * (1 - share) / share)} left" if share else ""
            self.console.print(f"{self.what}: {rows} rows{left}", highlight=False, soft_wrap=True)


class EvaluationProgress:
    """A bar over the problems of each benchmark on a terminal; a line every `SECONDS_IN_A_PIPE` elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        accuracy = TextColumn("{task.fields[accuracy]}")
        self.bar = Progress(*columns, accuracy, console=console, disable=not console.is_terminal)
        self.tasks: dict[tuple[str, str], TaskID] = {}
        self.model = ""
        self.reported = time.monotonic()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def on_model(self, model: str) -> None:
        """The next model."""
        self.model = model

    def on_progress(self, benchmark: str, done: int, total: int, accuracy: float) -> None:
        """Show how many problems are done, and the share of right samples so far."""
        key = (self.model, benchmark)
        if key not in self.tasks:
            self.tasks[key] = self.bar.add_task(f"{self.model}  {benchmark}", total=total, accuracy="")
        self.bar.update(self.tasks[key], completed=done, accuracy=f"accuracy {_short(accuracy)}")
        now = time.monotonic()
        if not self.console.is_terminal and (done == total or now - self.reported >= SECONDS_IN_A_PIPE):
            self.reported = now
            line = f"{self.model}, {benchmark}: {done}/{total} problems, accuracy {_short(accuracy)}"
            self.console.print(line, highlight=False, soft_wrap=True)


class CollectionProgress:
    """A bar over the questions on a terminal; a line every `SECONDS_IN_A_PIPE` elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        numbers = TextColumn("{task.fields[numbers]}")
        self.bar = Progress(*columns, numbers, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("answers", total=None, numbers="")
        self.reported = time.monotonic()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def on_answer(self, report: CollectionReport, questions: int) -> None:
        """Show how many of the questions are answered at most, and what came of them."""
        numbers = f"verified {report.verified / report.asked:.0%}  solved {report.solved}/{report.problems}"
        numbers += f"  tokens {report.completion_tokens:,}"
        self.bar.update(self.task, completed=report.asked, total=questions, numbers=numbers)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.reported >= SECONDS_IN_A_PIPE:
            self.reported = now
            self.console.print(f"{report.asked}/{questions} answers  {numbers}", highlight=False, soft_wrap=True)


def _table(comparison: Comparison, latest: dict[int, dict[str, Any]], left: str) -> Table:
    finished = sum(job.finished for job in comparison.jobs)
    table = Table("run", "step", *SHOWN, title=f"{finished} of {len(comparison.jobs)} runs done, {left} left")
    for job in comparison.jobs:
        metrics = latest[id(job)]
        numbers = [_short(metrics[key]) if key in metrics else "" for key in SHOWN.values()]
        step = f"{metrics.get('step', 0)}/{job.steps}"
        table.add_row(f"{_mark(job)} {job.method} {job.seed}", step, *numbers)
    return table


def _mark(job: Job) -> str:
    if job.finished:
        return "[green]done[/]"
    if job.failed:
        return "[red]failed[/]"
    return "[cyan]runs[/]" if job.process else "[dim]waits[/]"


def _short(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
