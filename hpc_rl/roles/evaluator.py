"""The evaluator: plays greedy games with the weights that rank 0 sends, and reports what they return.

Rank 0 sends weights only when the last ones are judged, and polls for the judgement: no learner waits for it.
"""

from __future__ import annotations

import time
from contextlib import suppress

import numpy as np

from hpc_rl.devices import to_device
from hpc_rl.optim.flat import count_trainable
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.messages import ALIVE, SCORES, WEIGHTS, ControlClient, score_layout, weights_layout
from hpc_rl.runtime.reporter import Reporter
from hpc_rl.samplers.base import Timings
from hpc_rl.transport.base import Inbox, Outbox
from hpc_rl.transport.waiting import DOZE_S, Heartbeat, Stopped

SLICE_ROWS = 64  # moves of all columns between two looks at the clock of the metrics


def evaluator(context: RankContext) -> None:
    """Judge until rank 0 says stop. Blocks only for weights."""
    link, waiting, evaluate = context.ports.link, context.ports.waiting, context.job.evaluate
    chief, sets, timings = context.rank_spec.peers[0], max(1, len(evaluate.arguments)), Timings()
    policy = context.method.make_policy()
    judge, parameters = context.make_judge(policy, timings), count_trainable(policy.net)
    inbox = Inbox(link, [chief], WEIGHTS, weights_layout(4 * parameters), waiting, credits=1)
    scores = Outbox(link, chief, SCORES, score_layout(sets), waiting)
    beat, nothing = Heartbeat(waiting.deadline_s / 4), np.zeros((1, sets))

    def alive() -> None:
        if beat.due() and scores.ready():
            scores.put({"returns": nothing, "success": nothing}, ALIVE)

    waiting.pulse = alive
    control = ControlClient(link, waiting, chief, alive)
    reporter, env_steps = Reporter(context.files, timings, context.limits.started), 0
    while not control.stopping():
        now = time.perf_counter()
        ready = lambda: inbox.ready() or control.control.ready()  # noqa: E731
        waiting.until(ready, f"weights of {waiting.who([chief])}", longest_sleep_s=DOZE_S)
        timings.timed("wait", now)
        if (message := inbox.poll()) is None:
            continue
        env_steps, judgement = message.version, None
        weights = to_device(message.tree["parameters"][0].copy().view(np.float32), "cpu")
        judge.begin(weights, evaluate.episodes, "evaluate")
        inbox.release(message)
        while judgement is None and not control.stopping():
            judgement = judge.advance(SLICE_ROWS, control.stopping)
            if reporter.due():
                reporter.report(env_steps, {})
        if judgement is not None:
            with suppress(Stopped):
                tree = {"returns": np.array([judgement.returns]), "success": np.array([judgement.success])}
                scores.put(tree, env_steps, control.stopping)
            reporter.report(env_steps, judgement.figures())
    judge.close()
    scores.flush()
    reporter.report(env_steps, {})
    control.send_final_report(timings, reporter.peak)
    reporter.close()
