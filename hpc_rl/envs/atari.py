"""Atari by ale_py's C++ vector environment; every argument is passed, since its defaults change the task.

What ale_py 0.12.1 does (measured; tests/envs/test_envs_atari.py looks again at what we rely on):

* Every ``recv`` returns fresh arrays that are never written again, so observations are handed on without a copy.
* ``episodic_life`` would restart the whole game at a lost life, and ``life_loss_info`` reports a lost life as
  ``terminated`` without a reset. We leave both off: then ``terminated`` is exactly the end of the game, and a lost life
  is read from ``info["lives"]`` (the same moves as ``life_loss_info`` in 11 games, with nothing left to tell apart).
* ``max_num_frames_per_episode`` counts frames after the no-ops of the reset, and ends an episode with ``truncated``
  alone, whatever lives are left. The next move is the reset: reward 0, zeros and one newest frame.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from hpc_rl.envs.base import BadEnvironment, Resumed, TimeSteps
from hpc_rl.types import Actions, Array, Spec


@dataclass(frozen=True)
class Options:
    """The task behind ALE/<Game>-v5; LIMITS has the ranges."""

    repeat_action_probability: float = 0.25  # sticky actions, what v5 means
    frameskip: int = 4  # frames per env step
    noop_max: int = 30  # most random no-op frames at a reset
    full_action_space: bool = False  # all 18 actions instead of those the game uses
    use_fire_reset: bool = True  # press FIRE after a reset where the game waits for it
    stack: int = 4  # frames per observation
    size: int = 84  # pixels, both ways
    max_frames: int = 108_000  # frames per episode, then a truncation
    life_loss_ends: bool = False  # discount 0 at a lost life; the game and its return go on


# Beyond these ale_py hangs, takes all memory, or accepts what means nothing: a noop_max beyond a game's length plays
# games before each reset, and the console has 210 × 160 pixels.
LIMITS: dict[str, tuple[float, float]] = {
    "repeat_action_probability": (0, 1),
    "frameskip": (1, 1000),
    "noop_max": (0, 1000),
    "stack": (1, 32),
    "size": (8, 512),
    "max_frames": (1, 2**31 - 1),
}
_OLD_NAME = re.compile(r"([A-Z]\w*?)(-ram)?(NoFrameskip|Deterministic)?-(v0|v4)")


def options_of(id: str, arguments: dict[str, Any]) -> Options:
    """The Options of a job's arguments, whose names are known to be right.

    Raises:
        BadEnvironment: a value is of another kind, or out of LIMITS.
    """
    kinds = {item.name: type(item.default) for item in fields(Options)}
    for name, value in arguments.items():
        low, high = LIMITS.get(name, (0, 1))
        allowed = {bool: "true or false", int: f"a whole number from {low} to {high}", float: f"from {low} to {high}"}
        kind = kinds[name]
        fits = isinstance(value, (int, kind)) and isinstance(value, bool) == (kind is bool)
        if not (fits and low <= value <= high):
            raise BadEnvironment(f"{id}: {name} = {value!r} is refused; it must be {allowed[kind]}")
    return Options(**arguments)


def old_name(id: str) -> str | None:
    """The remedy for a game under one of Gymnasium's older names, such as PongNoFrameskip-v4; None for other ids."""
    parts = _OLD_NAME.fullmatch(id)
    if parts is None or (new := f"ALE/{parts[1]}-v5") not in games():
        return None
    sticky = " and arguments = { repeat_action_probability = 0.0 }" if parts[4] == "v4" else ""
    ram = "; it shows images, the console's memory cannot be observed" if parts[2] else ""
    frames = "; frameskip = 4 and the usual preprocessing are part of it" if parts[3] == "NoFrameskip" else ""
    return f'{id} is the old name of a game of ale_py; write id = "{new}"{sticky}{ram}{frames}'


def games() -> dict[str, str]:
    """id -> ROM name of every game that ale_py knows, e.g. ALE/MsPacman-v5 -> ms_pacman."""
    from ale_py import roms

    return {f"ALE/{rom.title().replace('_', '')}-v5": rom for rom in roms.get_all_rom_ids()}


def describe(id: str, options: Options) -> Spec:
    """The Spec; loads the ROM into one bare emulator to count the actions.

    Raises:
        BadEnvironment: the ROM file is missing.
    """
    import ale_py
    from ale_py import roms

    try:
        path = roms.get_rom_path(games()[id])
    except OSError as error:  # what ale_py raises where ALE_ROMS_DIR does not hold it
        raise BadEnvironment(f"{id}: {error}; reinstall ale-py or unset ALE_ROMS_DIR") from None
    if path is None:
        raise BadEnvironment(f"{id}: its ROM file is not there; reinstall ale-py or unset ALE_ROMS_DIR")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    emulator = ale_py.ALEInterface()
    emulator.loadROM(path)
    chosen = emulator.getLegalActionSet() if options.full_action_space else emulator.getMinimalActionSet()
    return Spec(
        id=id,
        frame=(options.size, options.size),
        dtype="uint8",
        actions=Actions("discrete", (len(chosen),)),
        stack=options.stack,
        padding="zeros",
        action_repeat=options.frameskip,
    )


def make(id: str, options: Options, columns: int, threads: int) -> Atari:
    """b = ``columns`` games on ``threads`` C++ threads."""
    spec = describe(id, options)
    return Atari(spec, columns, vector_env(games()[id], options, columns, threads), options.life_loss_ends)


def vector_env(rom: str, options: Options, columns: int, threads: int) -> Any:
    """AtariVectorEnv with nothing left to its defaults."""
    from ale_py.vector_env import AtariVectorEnv
    from gymnasium.vector import AutoresetMode

    return AtariVectorEnv(
        game=rom,
        num_envs=columns,
        batch_size=columns,  # fewer would answer whoever is first, which no run could repeat
        num_threads=min(threads, columns),  # 0 would ignore the affinity mask
        thread_affinity_offset=-1,  # binding belongs to SLURM and mpiexec
        max_num_frames_per_episode=options.max_frames,
        repeat_action_probability=options.repeat_action_probability,
        full_action_space=options.full_action_space,
        continuous=False,
        continuous_action_threshold=0.5,
        autoreset_mode=AutoresetMode.NEXT_STEP,
        img_height=options.size,
        img_width=options.size,
        grayscale=True,
        stack_num=options.stack,
        frameskip=options.frameskip,
        maxpool=True,
        noop_max=options.noop_max,
        episodic_life=False,
        life_loss_info=False,
        reward_clipping=False,
        use_fire_reset=options.use_fire_reset,
    )


class Atari:
    """b games; see `Environment`."""

    rules_state = None

    def __init__(self, spec: Spec, columns: int, vector: Any, life_loss_ends: bool) -> None:
        self.spec = spec
        self.columns = columns
        self._vector = vector
        self._life_loss_ends = life_loss_ends
        self._unknown = np.full(columns, np.nan, np.float32)  # a game of Atari has a score and no success
        self._ended = np.zeros(columns, bool)  # the last move finished the game, so the next one is its reset
        self._lives = np.zeros(columns, np.int32)

    def reset(self, seeds: Array) -> Array:
        """First observations [b, *O] from 31-bit seeds [b]."""
        observation, info = self._vector.reset(seed=np.asarray(seeds, np.int64))
        self._ended = np.zeros(self.columns, bool)
        self._lives = info["lives"]
        return self._shaped(observation)

    def send(self, action: Array) -> None:
        """Start moving all games with action [b]; returns at once."""
        self._vector.send(np.asarray(action, np.int64))

    def recv(self) -> TimeSteps:
        """Wait for all games."""
        observation, reward, terminated, truncated, info = self._vector.recv()
        first = self._ended
        over = terminated
        if self._life_loss_ends:
            over = terminated | ((info["lives"] < self._lives) & ~first)
        self._ended = terminated | truncated
        self._lives = info["lives"]
        return TimeSteps(
            observation=self._shaped(observation),
            reward=reward.astype(np.float32),
            discount=1 - over.astype(np.float32),
            first=first,
            ended=self._ended,
            success=self._unknown,
        )

    def _shaped(self, observation: Array) -> Array:
        return observation if self.spec.stack > 1 else observation[:, 0]

    def state(self) -> None:
        """ale_py's vector environment has no such call, nor one that seeds a single game: resumed games are new."""

    def load(self, state: dict[str, Any]) -> Resumed:
        raise NotImplementedError(f"{self.spec.id} gave no state")

    def close(self) -> None:
        self._vector = None  # the C++ object joins its threads when it is freed
