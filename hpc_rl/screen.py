"""What `hpc-rl run` shows while the ranks work: a live panel on a terminal, one line every five seconds elsewhere.

It reads the ends of RUN/metrics/*.jsonl, which every rank writes for itself, so looking costs the ranks nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import sys
import time
from collections import deque
from datetime import timedelta
from typing import Any

from hpc_rl.plan import Plan
from hpc_rl.samplers.base import ACTIVITIES
from hpc_rl.settings import Job
from hpc_rl.storage.metrics import last
from hpc_rl.storage.run_dir import BadRun, RunDir

PANEL_S, LINE_S = 0.5, 5.0  # between refreshes of the panel, and between lines
RATE_S = 60.0  # the rate and the time left look back this far
ROWS = 8  # with more ranks the table has one row per role

Line = dict[str, Any]


class Screen:
    """Writes to stderr. Only metric lines of this attempt count: those written since the screen was made."""

    def __init__(self, run: RunDir, job: Job, plan: Plan) -> None:
        self.run, self.job, self.plan = run, job, plan
        self.started, self.next = time.time(), 0.0
        self.seen: deque[tuple[float, int]] = deque()  # (unix time, progress) of the head's recent lines
        self.repeat = _action_repeat(job)
        self.live = _live() if sys.stderr.isatty() else None

    def tick(self) -> None:
        """Show the newest figures, if it is time to."""
        now = time.monotonic()
        if now >= self.next:
            self.next = now + (LINE_S if self.live is None else PANEL_S)
            self._show(self._ending())

    def close(self, sentence: str) -> None:
        """Show the last figures with ``sentence``, and give the terminal back."""
        self._show(sentence)
        if self.live is not None:
            self.live.stop()

    def _ending(self) -> str:
        """What the ranks still do once their run is written as done; nothing before."""
        with contextlib.suppress(BadRun):
            state = self.run.read_state()
            if state["state"] == "done" and state["updated"] >= self.started:
                return f"{state['reason']}; the last policy plays its greedy games"
        return ""

    def _show(self, sentence: str) -> None:
        lines = {name: row for name, row in last(self.run.metrics).items() if row.get("time", 0.0) >= self.started}
        figures = self._figures(lines)
        if self.live is not None:
            panel = _panel(self.run, self.job, self.plan, lines, figures, sentence)
            panel.width = self.live.console.width - len("^C")  # which a terminal writes behind it, else on a new line
            self.live.update(panel, refresh=True)
        else:
            print(_sentence(self.job, self.plan, figures, sentence), file=sys.stderr, flush=True)

    def _figures(self, lines: dict[str, Line]) -> Line:
        """Rank 0's newest line, and what follows from it: rate (/s) of `_done`, frames, seconds elapsed and left."""
        head = lines.get(self.plan.ranks[0].name, {})
        elapsed = time.time() - self.started
        if "env_steps" not in head:
            return {"elapsed_s": elapsed}
        if not self.seen or self.seen[-1][0] != head["time"]:
            self.seen.append((head["time"], _done(self.plan, head)[0]))
        while self.seen[-1][0] - self.seen[0][0] > RATE_S:
            self.seen.popleft()
        (then, before), (now, done) = self.seen[0], self.seen[-1]
        rate = (done - before) / (now - then) if now > then else head.get("env_steps_per_s") or 0.0  # 0: not known yet
        budget = self.job.budget
        left_s = _left(self.job, self.plan, head) / rate if rate else math.inf
        if budget.time_limit_s:
            left_s = min(left_s, max(0.0, budget.time_limit_s - elapsed))
        return {**head, "rate": rate, "frames": head["env_steps"] * self.repeat, "elapsed_s": elapsed, "left_s": left_s}


def _done(plan: Plan, figures: Line) -> tuple[int, str]:
    """How far the run is, and in what: env steps, or updates where moves are recorded."""
    unit = ("env_steps", "env steps") if plan.acts else ("updates", "updates")
    return int(figures.get(unit[0]) or 0), unit[1]


def _left(job: Job, plan: Plan, figures: Line) -> float:
    """Of the same unit, to the end of the budget."""
    updates = int(figures.get("updates") or 0)
    return job.budget.left(figures["env_steps"], updates) if plan.acts else job.budget.updates - updates


def _action_repeat(job: Job) -> int:
    from hpc_rl.envs.make import describe

    return describe(job.environment.id, job.environment.arguments).action_repeat


def _live() -> Any:
    from rich.console import Console
    from rich.live import Live

    live = Live(console=Console(stderr=True), auto_refresh=False)
    live.start()
    atexit.register(live.stop)  # the cursor comes back whatever happens
    return live


def _sentence(job: Job, plan: Plan, figures: Line, sentence: str) -> str:
    """One log line."""
    ending = f"; {sentence}" if sentence else ""
    elapsed = _clock(figures["elapsed_s"])
    if "env_steps" not in figures:
        return f"{job.name}: {len(plan.ranks)} rank(s) starting, {elapsed} elapsed{ending}"
    done, unit = _done(plan, figures)
    parts = [
        f"{done:,}/{job.budget.env_steps if plan.acts else job.budget.updates:,} {unit}",
        f"{figures['rate']:,.0f}/s" if figures["rate"] else "rate not known yet",
        f"return {_return(figures)}",
        f"lag {_number(figures.get('policy_lag'))} (max {_number(figures.get('policy_lag_max'))})",
        f"{figures.get('updates', 0):,.0f} updates",
        f"{elapsed} elapsed",
    ]
    return f"{job.name}: {', '.join(parts)}" + (ending or f", {_clock(figures['left_s'])} left")


def _panel(run: RunDir, job: Job, plan: Plan, lines: dict[str, Line], figures: Line, sentence: str) -> Any:
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    parts = [_progress(job, plan, figures), _facts(run, job, figures)]
    if lines:
        parts += [Text(""), _table(plan, lines)]
    title = Text.assemble((job.name, "bold"), f" · {run.path}")  # names and sentences are no markup
    subtitle = Text(sentence) if sentence else None
    return Panel(Group(*parts), title=title, title_align="left", subtitle=subtitle, subtitle_align="left")


def _progress(job: Job, plan: Plan, figures: Line) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    budget = job.budget.env_steps if plan.acts else job.budget.updates
    done, unit = _done(plan, figures)
    if "env_steps" not in figures:
        row.add_row(f"{len(plan.ranks)} rank(s) starting", ProgressBar(budget, 0), f"0 / {budget:,} {unit}")
    else:
        total = done + _left(job, plan, figures)
        row.add_row(f"{done:,} / {budget:,} {unit}", ProgressBar(total, done), f"{done / max(1, total):.1%}")
    return row


def _facts(run: RunDir, job: Job, figures: Line) -> Any:
    """Two pairs of name and value in a row."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2), expand=True)
    for style, share in (("dim", None), ("", 1), ("dim", None), ("", 1)):
        grid.add_column(style=style, ratio=share, no_wrap=True)
    target = job.budget.stop_at_return
    goal = "" if target is None else f", target {target:g}"
    lag = f"{_number(figures.get('policy_lag'))}, max {_number(figures.get('policy_lag_max'))}"
    remaining = _clock(figures.get("left_s", math.inf)) + ("" if target is None else " at most")
    rate, frames = figures.get("rate", 0.0), figures.get("frames", 0)
    updates, episodes = figures.get("updates") or 0, figures.get("episodes") or 0
    grid.add_row("steps/s", f"{rate:,.0f}" if rate else "–", "frames", f"{frames:,}")
    judged = job.evaluate.periodic  # then the target is compared with greedy games
    training = _number(figures.get("mean_return_100"), 2) + ("" if judged else goal)
    greedy = ("greedy return", _number(figures.get("greedy_return"), 2) + goal) if judged else ("", "")
    grid.add_row("return", training, "episodes", f"{episodes:,.0f}")
    grid.add_row("policy lag", lag, "updates", f"{updates:,.0f}")
    grid.add_row("elapsed", _clock(figures["elapsed_s"]), "time left", remaining)
    grid.add_row("checkpoint", _checkpoint_age(run), *greedy)
    return grid


def _table(plan: Plan, lines: dict[str, Line]) -> Any:
    """Where each rank's time went since its last line, and its memory; beyond ROWS ranks the means of each role."""
    from rich.table import Table

    table = Table(box=None, expand=True, header_style="dim", padding=(0, 1))
    table.add_column("% of time")
    for name in (*ACTIVITIES, "RSS"):
        table.add_column(name, justify="right")
    groups: dict[str, list[Line]] = {}
    for rank in plan.ranks:
        if rank.name in lines:
            groups.setdefault(rank.name if len(plan.ranks) <= ROWS else rank.role, []).append(lines[rank.name])
    for name, rows in groups.items():
        shares = [sum(row.get(f"time/{key}") or 0.0 for row in rows) / len(rows) for key in ACTIVITIES]
        memory = [row.get("rss_bytes") or 0 for row in rows]
        label = name if len(plan.ranks) <= ROWS else f"{name} ×{len(rows)}"
        cells = [f"[bold]{100 * x:.0f}[/]" if x == max(shares) else f"{100 * x:.0f}" for x in shares]
        table.add_row(label, *cells, _size(max(memory)))
    return table


def _checkpoint_age(run: RunDir) -> str:
    times = []
    for path in run.checkpoints.glob("[0-9]*.h5"):
        with contextlib.suppress(OSError):  # a rank has just pruned it
            times.append(path.stat().st_mtime)
    return f"{_clock(max(0.0, time.time() - max(times)))} ago" if times else "none yet"


def _return(figures: Line) -> str:
    return f"{_number(figures.get('mean_return_100'), 2)} ({figures.get('episodes') or 0:,.0f} episodes)"


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _clock(seconds: float) -> str:
    return "unknown" if seconds > 1e8 else str(timedelta(seconds=int(seconds)))


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
