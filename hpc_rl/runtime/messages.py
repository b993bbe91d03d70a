"""The small messages between ranks, and the tags of all their channels (each also uses the next tag).

Tags from 60 on belong to the transport: parameters.py, ports.py.
"""

from __future__ import annotations

from hpc_rl.samplers.base import ACTIVITIES
from hpc_rl.transport.layout import Layout
from hpc_rl.types import Leaf, Schema

TRAJECTORIES, WEIGHTS, CONTROL, REPLIES, REPORTS, SCORES = 10, 20, 30, 40, 50, 56
ALIVE = -1  # the version of a message that only says that its sender is at work

CONTROL_SCHEMA = {
    "stop": Leaf((), "int64", "fragment", "", "1: finish, close files, reply"),
    "roll": Leaf((), "int64", "fragment", "", "number of the checkpoint that wants segments closed"),
}
REPLY_SCHEMA = {
    "split_s": Leaf((len(ACTIVITIES),), "float64", "fragment", "s", "time spent in each activity"),
    "peak_rss_bytes": Leaf((), "int64", "fragment", "byte", "largest resident memory"),
}


def report_schema(sent: Schema, kept: int) -> Schema:
    """Leaves of a fragment that `Counters` adds up, and ``kept`` numbers of the worker's learner: worker_numbers.py."""
    counted = {name: sent[name] for name in ("first", "version", "episode_return", "column", "start", "closed")}
    return {**counted, "kept": Leaf((kept,), "float64", "fragment")} if kept else counted


def score_layout(sets: int) -> Layout:
    """What an evaluator found, of each set of arguments; its version is the env steps of the weights, or ALIVE."""
    returns = Leaf((sets,), "float64", "fragment", "reward", "mean raw return of the greedy games")
    success = Leaf((sets,), "float64", "fragment", "", "part of the games that reached their goal")
    return Layout({"returns": returns, "success": success}, 1, 1)


def weights_layout(nbytes: int) -> Layout:
    """One version of all parameters, and the env steps of the job when it was made."""
    steps = Leaf((), "int64", "fragment", "env step", "of the whole job, for what actors anneal")
    return Layout({"parameters": Leaf((nbytes,), "uint8", "fragment"), "env_steps": steps}, 1, 1)
