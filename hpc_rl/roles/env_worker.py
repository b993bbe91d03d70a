"""The environment rank of central inference: steps its columns as it is told, holds no weights, records nothing."""

from __future__ import annotations

import time

import numpy as np

from hpc_rl.roles.base import Seat
from hpc_rl.roles.reporter import Reporter
from hpc_rl.samplers.base import Split, episode_seeds
from hpc_rl.samplers.central import ACTIONS, OBSERVATIONS, STOP, layouts
from hpc_rl.transport.base import Inbox, Outbox


def env_worker(seat: Seat) -> None:
    """Answer actions with what the environments show, until asked to leave."""
    link, waiting, server = seat.ports.link, seat.ports.waiting, seat.place.peers[0]
    columns, stacked, split = list(seat.place.columns), seat.spec.stack > 1, Split()
    answer, action = layouts(seat.spec, len(columns))
    outbox = Outbox(link, server, OBSERVATIONS, answer, waiting)
    inbox = Inbox(link, [server], ACTIONS, action, waiting)
    steps = seat.resume[1]["steps"] if seat.resume else {}
    made, asked = sum(int(steps.get(str(column), 0)) for column in columns), 0
    reporter = Reporter(seat, split, made)
    environment = seat.make_environment(len(columns), seat.place.threads)
    observation = environment.reset(episode_seeds(seat.job.seed, "episode", columns, seat.attempt))
    still = np.zeros(len(columns), np.float32)
    tree = {"reward": still, "discount": 1 - still, "first": still == 0, "ended": still > 0, "success": still + np.nan}
    while True:
        now = time.perf_counter()
        outbox.put({"frame": observation[:, -1] if stacked else observation, **tree}, 0)
        now = split.timed("send", now)
        message = inbox.get()
        now, asked = split.timed("wait", now), asked + 1
        if message.version == STOP:
            break
        environment.send(message.tree["action"].copy())
        inbox.release(message)
        moves = environment.recv()
        split.timed("step", now)
        observation, made = moves.observation, made + int((~moves.first).sum())
        tree = {name: getattr(moves, name) for name in tree}
        if reporter.due():
            waited = split.seconds["wait"] - reporter.before["wait"]
            reporter.report(made, {"answer_s": waited / max(1, asked)})
            asked = 0
    outbox.flush()
    reporter.report(made, {})
    reporter.close()
