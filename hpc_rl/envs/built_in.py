"""The environments that come with this package, by their ids."""

from __future__ import annotations

from collections.abc import Callable

from hpc_rl.envs import chains, classic, games, go, goals, grids, mazes, othello, point_maze, swing_up, toys
from hpc_rl.envs.toy import Toy
from hpc_rl.envs.warp.robots import ROBOTS

TOYS: dict[str, Callable[..., Toy]] = {
    "toy/counter": toys.counter,
    "toy/box_counter": toys.box_counter,
    "toy/chain": toys.chain,
    "toy/catch": toys.catch,
    "toy/latency": toys.latency,
    "toy/tmaze": toys.tmaze,
    "toy/grid": toys.grid,
    "toy/deep_sea": grids.deep_sea,
    "toy/four_rooms": grids.four_rooms,
    "toy/maze": mazes.maze,
    "toy/keychest": mazes.keychest,
    "toy/six_states": chains.six_states,
    "toy/tictactoe": games.tictactoe,
    "toy/connect_four": games.connect_four,
    "toy/othello": othello.othello,
    "toy/go": go.go,
    "toy/faulty": toys.faulty,
    "toy/pilco_pendulum": swing_up.pilco_pendulum,
    "toy/pilco_cartpole": swing_up.pilco_cartpole,
    "toy/cartpole": classic.cartpole,
    "toy/pendulum": classic.pendulum,
    "toy/mountaincar": classic.mountaincar,
    "toy/acrobot": classic.acrobot,
    "toy/point_maze": point_maze.point_maze,
    "toy/bitflip": goals.bitflip,
    "toy/goal_counter": goals.goal_counter,
    "toy/game_counter": games.game_counter,
    "toy/goal_mountaincar": goals.goal_mountaincar,
    "toy/goal_pendulum": goals.goal_pendulum,
}

BUILT_IN: dict[str, Callable[..., Toy]] = TOYS | ROBOTS


def built_in(id: str) -> bool:
    """Whether an id can be only one of these."""
    return id.startswith(("toy/", "warp/"))
