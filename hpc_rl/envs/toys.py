"""Small environments for tests and benchmarks: repeatable from their seeds and cloneable to the bit."""

from __future__ import annotations

import math
import os
import signal
import time
from dataclasses import replace
from types import ModuleType

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.toy import LARGEST, Outcome, Toy, one_hot, toy_spec, within, zeros
from hpc_rl.types import Actions, Array, Numbers, Rules, RulesState

# ---- counter: the witness -------------------------------------------------------------------------------------------


def counter(xp: ModuleType, /) -> Toy:
    """The witness: rewards are 1, 2, 3, … per column, so that a lost, doubled or reordered step shows in the data.

    Observation [3]: episode number, step within the episode, moves of this column so far. Episode e lasts 5, 7 or 11
    moves in turn (e mod 3) and terminates where e is even, else is truncated. Seeds and actions change nothing.
    """

    def begin(u: Numbers) -> RulesState:
        return {name: zeros(xp, u) for name in ("episode", "step", "total")}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        episode, step, total = state["episode"], state["step"] + 1, state["total"] + 1
        turn, even = episode % 3, episode % 2 == 0
        over = step == xp.where(turn == 2, 11, 5 + 2 * turn)
        reward, discount = xp.asarray(total, dtype=xp.float32), xp.where(over & even, 0.0, 1.0)
        return {"episode": episode, "step": step, "total": total}, reward, discount, over & ~even

    def show(state: RulesState) -> Numbers:
        return xp.asarray(xp.stack([state["episode"], state["step"], state["total"]], 1), dtype=xp.float32)

    def follow(last: RulesState, fresh: RulesState) -> RulesState:
        return {"episode": last["episode"] + 1, "step": fresh["step"], "total": last["total"]}

    return Toy(Rules(toy_spec("toy/counter", (3,), 2), begin, move, show), follow)


def box_counter(xp: ModuleType, /) -> Toy:
    """The counter for methods of continuous control: an action is two numbers from −1..1, which change nothing."""
    sound = counter(xp)
    spec = replace(sound.rules.spec, id="toy/box_counter", actions=Actions("box", (2,), (-1.0, -1.0), (1.0, 1.0)))
    return replace(sound, rules=replace(sound.rules, spec=spec))


def faulty(xp: ModuleType, /, *, at: int = 100, how: str = "raise", once: str = "") -> Toy:
    """The counter, until a column makes its move number ``at``: then "raise" (RuntimeError), "kill" (SIGKILL to this
    process) or "hang" (for ever). With ``once`` = a file name, only the process that creates that file is struck, so
    that one rank of many fails, and not again after a restart.

    Raises:
        BadEnvironment: ``how`` is something else.
    """
    if how not in ("raise", "kill", "hang"):
        raise BadEnvironment(f"toy/faulty: how = {how!r} is none of raise, kill, hang")
    sound = counter(xp)

    def effect(state: RulesState, moved: Array, started: float) -> None:
        if (state["total"][moved] == at).any() and _my_turn(once):
            _strike(how, at)

    return Toy(replace(sound.rules, spec=replace(sound.rules.spec, id="toy/faulty")), sound.follow, effect)


def _my_turn(once: str) -> bool:
    try:
        if once:
            os.close(os.open(once, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _strike(how: str, at: int) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    while how == "hang":
        time.sleep(3600)
    raise RuntimeError(f"toy/faulty fails at move {at}, as it was told to")


# ---- chain and latency ----------------------------------------------------------------------------------------------


def chain(xp: ModuleType, /, *, length: int = 8) -> Toy:
    """``length`` states one-hot; action 1 goes right, 0 left; the right end pays 1 and terminates, which is a success;
    a time limit of 4 × length moves truncates."""
    within("toy/chain", length=(length, 1, LARGEST))

    def begin(u: Numbers) -> RulesState:
        return {"place": zeros(xp, u), "step": zeros(xp, u)}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        place, step = _walk(xp, state["place"], action, length), state["step"] + 1
        there = place == length - 1
        truncated = ~there & (step == 4 * length)
        return {"place": place, "step": step}, xp.where(there, 1.0, 0.0), xp.where(there, 0.0, 1.0), truncated

    def show(state: RulesState) -> Numbers:
        return one_hot(xp, state["place"], length)

    def success(state: RulesState) -> Numbers:
        return state["place"] == length - 1

    return Toy(Rules(toy_spec("toy/chain", (length,), 2), begin, move, show, success=success))


def _walk(xp: ModuleType, place: Numbers, action: Numbers, length: int) -> Numbers:
    """One step on the chain."""
    return xp.clip(place + xp.where(action == 1, 1, -1), 0, length - 1)


def latency(
    xp: ModuleType,
    /,
    *,
    length: int = 8,
    step_s: float = 0.02,
    cv: float = 0.5,
    reset_s: float = 1.0,
    end_probability: float = 1 / 50,
    slow: float = 1.0,
    once: str = "",
) -> Toy:
    """A chain that takes time: a move lasts log-normal seconds (mean ``step_s``, coefficient of variation ``cv``), a
    reset ``reset_s``. Any move terminates with ``end_probability``; the right end pays 1 and ends nothing.

    With ``once`` = a file name, the process that creates that file takes ``slow`` times as long for everything.
    """
    within("toy/latency", length=(length, 1, LARGEST), end_probability=(end_probability, 0, 1), cv=(cv, 0, 100))
    within("toy/latency", step_s=(step_s, 1e-9, 3600), reset_s=(reset_s, 0, 3600), slow=(slow, 0, LARGEST))
    times: list[float] = []  # found out at the first reset: whoever only asks for the Spec must not take the turn
    sigma = math.sqrt(math.log1p(cv**2))
    log_mean = math.log(step_s) - sigma**2 / 2

    def begin(u: Numbers) -> RulesState:
        return {"place": zeros(xp, u), "busy_s": xp.asarray(zeros(xp, u), dtype=xp.float64) + reset_s}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        normal = xp.sqrt(-2 * xp.log1p(-u[:, 0])) * xp.cos(2 * math.pi * u[:, 1])  # Box and Muller 1958
        place, over = _walk(xp, state["place"], action, length), u[:, 2] < end_probability
        reward, discount = xp.where(place == length - 1, 1.0, 0.0), xp.where(over, 0.0, 1.0)
        return {"place": place, "busy_s": xp.exp(log_mean + sigma * normal)}, reward, discount, xp.zeros_like(over)

    def show(state: RulesState) -> Numbers:
        return one_hot(xp, state["place"], length)

    def effect(state: RulesState, moved: Array, started: float) -> None:
        """Wait until the slowest column is ready."""
        if not times:
            times.append(slow if once and _my_turn(once) else 1.0)
        time.sleep(max(0.0, started + times[0] * float(state["busy_s"].max()) - time.monotonic()))

    return Toy(Rules(toy_spec("toy/latency", (length,), 2), begin, move, show, move_uniforms=3), None, effect)


# ---- catch ----------------------------------------------------------------------------------------------------------


def catch(xp: ModuleType, /, *, rows: int = 10, columns: int = 5, pixels: bool = False, stack: int = 1) -> Toy:
    """A ball falls from a random column of the board; the paddle below goes left, stays or goes right (0, 1, 2). The
    last row pays +1 where the paddle is under it, which is a success, else -1, and terminates: rows - 1 moves an
    episode. A board with a middle column looks the same in a mirror.

    Shows float32 [rows × columns] of 0 and 1, or with ``pixels`` uint8 frames [rows, columns] of 0 and 255.

    Raises:
        BadEnvironment: a stack without pixels.
    """
    if stack > 1 and not pixels:
        raise BadEnvironment("toy/catch: stack needs pixels = true")
    within("toy/catch", rows=(rows, 2, LARGEST), columns=(columns, 1, LARGEST), stack=(stack, 1, 32))
    frame, dtype = ((rows, columns), "uint8") if pixels else ((rows * columns,), "float32")

    def begin(u: Numbers) -> RulesState:
        ball = xp.clip(xp.asarray(xp.floor(u[:, 0] * columns), dtype=xp.int64), 0, columns - 1)
        return {"ball": ball, "row": xp.zeros_like(ball), "paddle": xp.zeros_like(ball) + columns // 2}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        row, paddle = state["row"] + 1, xp.clip(state["paddle"] + action - 1, 0, columns - 1)
        over, caught = row == rows - 1, xp.where(paddle == state["ball"], 1.0, -1.0)
        reward, discount = xp.where(over, caught, 0.0), xp.where(over, 0.0, 1.0)
        return {"ball": state["ball"], "row": row, "paddle": paddle}, reward, discount, xp.zeros_like(over)

    def show(state: RulesState) -> Numbers:
        ball = one_hot(xp, state["row"], rows)[:, :, None] * one_hot(xp, state["ball"], columns)[:, None]
        bottom = one_hot(xp, xp.zeros_like(state["row"]) + rows - 1, rows)[:, :, None]
        board = xp.maximum(ball, bottom * one_hot(xp, state["paddle"], columns)[:, None])
        return xp.asarray(board * 255, dtype=xp.uint8) if pixels else board.reshape(len(board), -1)

    def success(state: RulesState) -> Numbers:
        return state["paddle"] == state["ball"]

    def mirrored(frames: Numbers) -> Numbers:
        """[.., *frame]"""
        board = frames.reshape(*frames.shape[: -len(frame)], rows, columns)
        return xp.flip(board, (-1,)).reshape(frames.shape)

    symmetries = ((mirrored, lambda action: 2 - action),) if columns % 2 else ()
    spec = toy_spec("toy/catch", frame, 3, dtype, stack)
    return Toy(Rules(spec, begin, move, show, 1, success=success, symmetries=symmetries))


# ---- T-maze: what has to be remembered ------------------------------------------------------------------------------


def tmaze(xp: ModuleType, /, *, length: int = 10) -> Toy:
    """A corridor of ``length`` places, a sign at the first, a junction at the last (Bakker 2001, NIPS 14).

    Action 0 walks on, 1 turns left, 2 right. At the junction a turn terminates, with 1 where the sign pointed to, which
    is a success, else -1; anything else there, and a turn in the corridor, changes nothing. A time limit of 2 × length
    moves truncates. Shows [4]: sign to the left, sign to the right, corridor, junction; the sign at its place only, so
    that it has to be remembered for length - 1 moves.
    """
    within("toy/tmaze", length=(length, 2, LARGEST))

    def begin(u: Numbers) -> RulesState:
        side = xp.asarray(u[:, 0] < 0.5, dtype=xp.int64)  # 0: the sign points to the left
        return {"side": side} | {name: xp.zeros_like(side) for name in ("place", "step", "won")}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        side, step, end = state["side"], state["step"] + 1, state["place"] == length - 1
        turned, right_way = end & (action > 0), action == 1 + side
        place = xp.where(~end & (action == 0), state["place"] + 1, state["place"])
        reward = xp.where(turned, xp.where(right_way, 1.0, -1.0), 0.0)
        won = xp.asarray(turned & right_way, dtype=xp.int64)
        following = {"side": side, "place": place, "step": step, "won": won}
        return following, reward, xp.where(turned, 0.0, 1.0), ~turned & (step == 2 * length)

    def show(state: RulesState) -> Numbers:
        place, side = state["place"], state["side"]
        sign, end = place == 0, place == length - 1
        return xp.asarray(xp.stack([sign & (side == 0), sign & (side == 1), ~sign & ~end, end], 1), dtype=xp.float32)

    def success(state: RulesState) -> Numbers:
        return state["won"] == 1

    return Toy(Rules(toy_spec("toy/tmaze", (4,), 3), begin, move, show, 1, success=success))


# ---- grid: a reward that is seldom met ------------------------------------------------------------------------------


def grid(xp: ModuleType, /, *, size: int = 10) -> Toy:
    """A square of ``size`` × ``size`` places, one-hot; actions 0 to 3 go up, right, down and left, a wall stops them.

    An episode begins somewhere in the first column. The last place of the last row alone pays 1 and terminates, which
    is a success; a time limit of 4 × size moves truncates. Random moves meet it in one episode of 79 where size is 10.
    """
    within("toy/grid", size=(size, 2, 100))

    def begin(u: Numbers) -> RulesState:
        row = xp.clip(xp.asarray(xp.floor(u[:, 0] * size), dtype=xp.int64), 0, size - 1)
        return {"row": row, "column": xp.zeros_like(row), "step": xp.zeros_like(row)}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        down = xp.where(action == 2, 1, xp.where(action == 0, -1, 0))
        right = xp.where(action == 1, 1, xp.where(action == 3, -1, 0))
        row, column = (xp.clip(x + by, 0, size - 1) for x, by in ((state["row"], down), (state["column"], right)))
        step, there = state["step"] + 1, (row == size - 1) & (column == size - 1)
        following = {"row": row, "column": column, "step": step}
        return following, xp.where(there, 1.0, 0.0), xp.where(there, 0.0, 1.0), ~there & (step == 4 * size)

    def show(state: RulesState) -> Numbers:
        return one_hot(xp, size * state["row"] + state["column"], size**2)

    def success(state: RulesState) -> Numbers:
        return (state["row"] == size - 1) & (state["column"] == size - 1)

    return Toy(Rules(toy_spec("toy/grid", (size**2,), 4), begin, move, show, 1, success=success))
