"""The environment rank of central inference: steps its columns by actions that it receives. It holds no weights."""

from __future__ import annotations

import time

import numpy as np

from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.reporter import Reporter
from hpc_rl.samplers.base import Timings, episode_seeds
from hpc_rl.samplers.central import ACTIONS, OBSERVATIONS, STOP, layouts
from hpc_rl.transport.base import Inbox, Outbox


def env_worker(context: RankContext) -> None:
    """Answer actions with what the environments show, until asked to leave."""
    link, waiting, server = context.ports.link, context.ports.waiting, context.rank_spec.peers[0]
    columns, spec, timings = list(context.rank_spec.columns), context.method.spec, Timings()
    answer, action = layouts(spec, len(columns))
    outbox = Outbox(link, server, OBSERVATIONS, answer, waiting)
    inbox = Inbox(link, [server], ACTIONS, action, waiting)
    steps = context.resume[1]["steps"] if context.resume else {}
    made, asked = sum(int(steps.get(str(column), 0)) for column in columns), 0
    reporter = Reporter(context.files, timings, context.limits.started, made)
    environment = context.make_columns(len(columns), context.rank_spec.threads)
    observation = environment.reset(episode_seeds(context.job.seed, "episode", columns, context.attempt))
    still = np.zeros(len(columns), np.float32)
    tree = {"reward": still, "discount": 1 - still, "first": still == 0, "ended": still > 0, "success": still + np.nan}
    while True:
        now = time.perf_counter()
        outbox.put({"frame": observation[:, -1] if spec.stack > 1 else observation, **tree}, 0)
        now = timings.timed("send", now)
        message = inbox.get()
        now, asked = timings.timed("wait", now), asked + 1
        if message.version == STOP:
            break
        environment.send(message.tree["action"].copy())
        inbox.release(message)
        moves = environment.recv()
        timings.timed("step", now)
        observation, made = moves["observation"], made + int((~moves["first"]).sum())
        tree = {name: moves[name] for name in tree}
        if reporter.due():
            waited = timings.seconds["wait"] - reporter.before["wait"]
            reporter.report(made, {"answer_s": waited / max(1, asked)})
            asked = 0
    outbox.flush()
    reporter.report(made, {})
    reporter.close()
