"""Hindsight (Andrychowicz et al. 2017, arXiv 1707.01495): items whose goal is what was achieved at another row.

Each item that is drawn is relabelled with probability ``share``, k / (k + 1) for the k relabelled moves that the paper
stores beside each move (section 4.5). Its goal is what was achieved at a row that is drawn uniformly:

    future    from the rows behind the item's first move to the end of its episode
    final     the last row of its episode
    episode   from all rows of its episode
    random    from all rows of the ring, whatever episode they are of

Only rows in the ring count. The end of an episode is its newest row until it has ended; items whose complete =
"episode" are drawn after that only. An episode is a shorter span of it where `Relabel.within` says so.

A move is judged by what it led to, the achieved goal of the row behind it. Its discount follows from the new goal
alone: reaching another goal, which ended the episode, is no termination any more, and a time limit never was one.
"""

from __future__ import annotations

import numpy as np

from hpc_rl.experience import Experience, Items, Relabel, Unsuited
from hpc_rl.replay.rows import Rows
from hpc_rl.types import Array, GoalReward, Spec, Tree

ACHIEVED, DESIRED = "achieved_goal", "desired_goal"


class Spans:
    """First and last row of the span of an episode that each row in memory is of, for all columns of ``rows``.

    Spans of a column are numbered; at most as many are in memory as rows are.
    """

    def __init__(self, rows: Rows, within: str) -> None:
        self.rows, self.within = rows, within
        self.number, self.begin, self.end = np.zeros((3, rows.slots, rows.width), np.int64)
        self.count = np.zeros(rows.width, np.int64)

    def extend(self, low: int) -> None:
        """Take in the moves from row ``low`` on, which are new.

        What the last move of a span led to is its last row: the row that opens the next one, or an episode's last.
        """
        rows, row = self.rows, np.arange(low, self.rows.end)[:, None]
        opens = rows.of("first", low) | rows.data["gap"][(row[:, 0] - 1) % rows.slots]
        if self.within:
            opens |= rows.of(f"extras/{self.within}", low)
        number = self.count + opens.cumsum(0)
        self.number[row[:, 0] % rows.slots], self.count = number, number[-1]
        place, column = number % rows.slots, np.broadcast_to(np.arange(rows.width), number.shape)
        self.begin[place[opens], column[opens]] = np.broadcast_to(row, number.shape)[opens]
        self.end[place, column] = row + rows.valid(low)[0]  # of several rows of a span the last one is written last

    def of(self, row: Array, column: Array) -> tuple[Array, Array]:
        """(first, last) [n] of the rows [n] of columns [n]."""
        place = self.number[row % self.rows.slots, column] % self.rows.slots
        return self.begin[place, column], self.end[place, column]


class Relabelling:
    """Relabels the items of one kind that a ring with these ``rows`` draws.

    Raises:
        ValueError: the policy has no such extras, or nobody says what another goal pays.
    """

    def __init__(self, relabel: Relabel, rows: Rows, spec: Spec, goal_reward: GoalReward | None) -> None:
        _check_extras(relabel, rows, spec)
        self.relabel, self.rows, self.goal_reward = relabel, rows, None if relabel.goal else goal_reward
        if goal_reward is None and not relabel.goal:
            raise ValueError("items are relabelled with other goals of observations, and the ring has no goal_reward")
        self.spans = Spans(rows, relabel.within)
        self.achieved = slice(spec.parts[ACHIEVED].start, spec.parts[ACHIEVED].stop)
        desired = spec.parts.get(DESIRED)
        self.desired = slice(desired.start, desired.stop) if desired else slice(0, 0)

    def apply(self, tree: Tree, row: Array, column: Array, low: int, draw: np.random.Generator) -> None:
        """Write new goals into a share of the items [L(+1), n] that begin at ``row`` [n] of ``column`` [n].

        ``low`` is the oldest row that an item may begin with.
        """
        whether, which = draw.random((2, len(row)))
        chosen = np.flatnonzero(whether < self.relabel.share)
        row, column = self._sources(row[chosen], column[chosen], low, which[chosen])
        goal = self.rows.flat["observation"][self.rows.at(row, column)][:, self.achieved]
        if self.goal_reward is None:
            for name in {f"extras/{self.relabel.goal}", f"carry/{self.relabel.goal}"} & tree.keys():
                tree[name][..., chosen, :] = goal
            return
        observation = tree["observation"]
        observation[:, chosen, self.desired] = goal
        achieved = observation[1:, chosen, self.achieved]
        reward, discount = self.goal_reward(achieved, np.broadcast_to(goal, achieved.shape))
        tree["reward"][:, chosen], tree["discount"][:, chosen] = reward, discount

    def _sources(self, row: Array, column: Array, low: int, u: Array) -> tuple[Array, Array]:
        """(row, column) [n] whose achieved goals are those of the items that begin at these, by uniforms ``u`` [n]."""
        strategy, width = self.relabel.strategy, self.rows.width
        if strategy == "random":
            row, column = np.divmod((u * (self.rows.end + 1 - low) * width).astype(np.int64), width)
            return low + row, column
        first, last = self.spans.of(row, column)
        begin = {"future": row + 1, "final": last, "episode": np.maximum(first, low)}[strategy]
        return begin + (u * (last + 1 - begin)).astype(np.int64), column


def _check_extras(relabel: Relabel, rows: Rows, spec: Spec) -> None:
    size = spec.parts[ACHIEVED].stop - spec.parts[ACHIEVED].start
    for name, shape in ((relabel.goal, (size,)), (relabel.within, ())):
        leaf = rows.flat.get(f"extras/{name}")
        if name and (leaf is None or leaf.shape[1:] != shape):
            raise ValueError(
                f"Relabel names the extra {name!r}, which must be {list(shape)} of each move; see Policy.extras"
            )


def relabelling(items: Items, rows: Rows, spec: Spec, goal_reward: GoalReward | None) -> Relabelling | None:
    """Of this kind of items, where it relabels."""
    return Relabelling(items.relabel, rows, spec, goal_reward) if items.relabel else None


def check_goals(experience: Experience, spec: Spec) -> None:
    """Raise Unsuited where items are relabelled and the environment shows no goals."""
    for relabel in (items.relabel for items in experience.items if items.relabel):
        names = [ACHIEVED] if relabel.goal else [ACHIEVED, DESIRED]
        wanted = " and ".join(f'"{name}"' for name in names)
        missing = [name for name in names if name not in spec.parts]
        if missing or spec.stack > 1 or len(spec.frame) > 1:
            shown = f"the parts {', '.join(spec.parts)}" if spec.parts else "no parts"
            raise Unsuited(
                f"relabelling looks for {wanted} among the parts of an observation that is a row of numbers, and "
                f"{spec.id} shows {shown}; use an environment with goals, as Gymnasium's GoalEnv, or relabel nothing"
            )
        sizes = {spec.parts[name].stop - spec.parts[name].start for name in names}
        if len(sizes) > 1:
            raise Unsuited(f"relabelling puts {ACHIEVED} in the place of {DESIRED}; in {spec.id} they differ in size")


def goals_of_observations(experience: Experience) -> bool:
    """Whether rewards are computed again for other goals."""
    return any(items.relabel and not items.relabel.goal for items in experience.items)


def spans_bytes(experience: Experience, slots: int, columns: int) -> int:
    """Memory of the spans of a ring."""
    return sum(3 * 8 * slots * columns for items in experience.items if items.relabel)
