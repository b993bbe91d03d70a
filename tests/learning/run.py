"""The learning bars: jobs × seeds, one after the other, each a whole `hpc-rl run`; prints a line for each.

That is env steps to the target, and the best policy judged afterwards in games of its own. A job's controls follow
it: the same job without what should do the work, on the first two of its seeds, or on all where the bar compares them.

python -m tests.learning.run --out runs/learn [--only dqn_cartpole] [--controls]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REACHED = ("done: mean return", "done: greedy games")  # of runtime/counters.py, where the target ended the run
FIVE, THREE = (1, 2, 3, 4, 5), (1, 2, 3)
SEEDS = {
    "a2c_cartpole": FIVE,
    "a3c_cartpole": FIVE,
    "ga3c_cartpole": FIVE,
    "impala_cartpole": FIVE,
    "impala_cartpole_two_learners": FIVE,
    "ppo_cartpole": FIVE,
    "bc_cartpole": FIVE,
    "dqn_cartpole": (21, 22, 23, 24, 25),  # its settings were chosen with smaller ones
    "apex_cartpole": FIVE,  # chosen with seeds 11 to 13, as those of all jobs below that replay
    "apex_cartpole_two_learners": FIVE,
    "gorila_cartpole": FIVE,
    "apex_grid": FIVE,
    "apex_dpg_pendulum": FIVE,
    "seed_r2d2_masked_cartpole": FIVE,
    "rainbow_cartpole": FIVE,
    "r2d2_masked_cartpole": FIVE,  # chosen with seeds 11 to 13, as those of r2d2_recall
    "r2d2_recall": FIVE,
    "cem_cartpole": FIVE,
    "hdqn_chain": FIVE,  # its bar is a mean over 20 000 episodes: tests/learning/six_states.py judges the runs
    "dqn_chain": FIVE,
    "seed_cartpole": FIVE,
    "rnd_deepsea": FIVE,  # chosen with seeds 11 to 13, as those of all of RND
    "rnd_four_rooms": FIVE,
    "rnd_mountaincar": FIVE,
    "ppo_deepsea": FIVE,  # RND's controls
    "ppo_four_rooms": FIVE,
    "ppo_mountaincar": FIVE,
    "ppo_pendulum": FIVE,
    "ddpg_pendulum": FIVE,
    "td3_pendulum": FIVE,
    "sac_pendulum": FIVE,
    "d4pg_pendulum": FIVE,
    "sac_halfcheetah": (1, 2),
    "ppo_humanoid_device": FIVE,  # written down first; needs the extra warp
    "her_bitflip": FIVE,  # chosen with seed 11
    "ppo_masked_cartpole": FIVE,
    "impala_masked_cartpole": FIVE,
    "impala_catch": FIVE,
    "fun_maze": FIVE,  # chosen with seed 11
    "a2c_maze": FIVE,  # the control of fun_maze, chosen with seed 11, too
    "fun_keychest": (1,),  # not learned
    "alphazero_tictactoe": THREE,  # its bar, lines that lose, is counted by hpc-rl eval
    "alphazero_connect4_small": (1,),
    "impala_pong": THREE,
    "ppo_pong": THREE,
    "a2c_pong": THREE,
    "hiro_pointmaze": THREE,  # chosen with seed 11
    "hac_mountaincar": FIVE,  # chosen with seed 11
    "hac_pendulum": FIVE,
    "td3_pointmaze": THREE,  # the flat control of it
    "pilco_cartpole": FIVE,  # chosen with seeds 11 and 12
    "pilco_mountaincar": FIVE,  # tried with seed 11
    "pilco_nn_pendulum": THREE,
    "pilco_noisy_pendulum": THREE,  # chosen with seed 11; its control is the bar
    "pilco_pendulum": FIVE,  # chosen with seeds 11 and 12; its bar is the success that `hpc-rl eval` prints
}

# Jobs whose bar is a comparison with a control: on all seeds.
COMPARED = (
    "apex_grid", "hac_mountaincar", "hiro_pointmaze", "her_bitflip", "pilco_noisy_pendulum", "ppo_deepsea",
    "rnd_deepsea",
)  # fmt: skip
LARGER_SEA = ("environment.arguments.size=20", "budget.env_steps=1_000_000")
CONTROLS = {  # job -> control -> the settings that take something away, or make the task harder
    "rnd_deepsea": {"size_20": LARGER_SEA},
    "ppo_deepsea": {"size_20": LARGER_SEA},
    "rnd_four_rooms": {"no_bonus": ("rnd.intrinsic_weight=0.0",)},
    "dqn_cartpole": {
        "no_target_network": ("dqn.target_every=1",),  # θ⁻ = θ at every update
        "no_replay": ("dqn.capacity=64",),  # the least: 8 moves of each of 8 columns
        "untrained": ("dqn.samples_per_insert=1e-9", "dqn.epsilon_final=1.0"),  # no update, and random moves
    },
    "rainbow_cartpole": {
        "uniform": ("rainbow.priority_exponent=0.0",),
        "no_noise": ("rainbow.sigma=1e-6",),  # nothing explores
        "one_step": ("rainbow.n_step=1",),
    },
    "ddpg_pendulum": {
        "no_target_networks": ("ddpg.tau=1.0",),  # θ⁻ = θ at every update
        "untrained": ("ddpg.samples_per_insert=1e-9",),
    },
    "td3_pendulum": {
        "ddpg": ("td3.policy_delay=1", "td3.target_noise=0.0"),  # what is left of TD3's three changes: two critics
        "untrained": ("td3.samples_per_insert=1e-9",),
    },
    "sac_pendulum": {
        "temperature_kept": ("sac.temperature_learning_rate=0.0",),  # α = 1
        "untrained": ("sac.samples_per_insert=1e-9",),
    },
    "d4pg_pendulum": {
        "one_step": ("d4pg.n_step=1",),
        "no_target_networks": ("d4pg.target_every=1",),
        "untrained": ("d4pg.samples_per_insert=1e-9",),
    },
    "r2d2_masked_cartpole": {
        "zero_state": ("r2d2.state='zero'", "r2d2.burn_in=0"),
        "stored_state": ("r2d2.burn_in=0",),
        "zero_state_burn_in": ("r2d2.state='zero'",),
        "uniform": ("r2d2.priority_exponent=0.0",),
    },
    "her_bitflip": {
        "none": ("dqn.relabel='none'", "budget.env_steps=72_000"),  # 4 800 episodes, as many as with hindsight
        "final": ("dqn.relabel='final'",),
        "episode": ("dqn.relabel='episode'",),
        "random": ("dqn.relabel='random'",),
        "bits_20": ("environment.arguments.bits=20", "budget.env_steps=70_000"),
        "bits_20_none": ("environment.arguments.bits=20", "dqn.relabel='none'", "budget.env_steps=96_000"),
    },
    "apex_grid": {"uniform": ("dqn.priority_exponent=0.0",)},
    "apex_cartpole": {
        "uniform": ("dqn.priority_exponent=0.0",),
        "untrained": ("dqn.samples_per_insert=1e-9",),
    },
    "hdqn_chain": {"untrained": ("hdqn.samples_per_insert=1e-9",)},  # ε stays 1; dqn_chain is its flat control
    "gorila_cartpole": {"untrained": ("dqn.samples_per_insert=1e-9",)},
    "hac_mountaincar": {
        "three_levels": ("hac.levels=3", "hac.horizon=5"),  # no control: the other setting of the paper
        "flat": ("hac.levels=1",),  # DDPG with hindsight
        "no_tests": ("hac.test_share=0.0",),
    },
    "hac_pendulum": {"flat": ("hac.levels=1",)},
    "hiro_pointmaze": {"no_relabelling": ("hiro.candidates=1",)},
    "fun_maze": {"few_random_goals": ("fun.random_goal=0.05",)},  # the worker learns the way itself
    "bc_cartpole": {
        "untrained": ("budget.updates=1",),
        "all_games": ("bc.episodes=0",),  # those of the beginner, too
        "ten_games": ("bc.episodes=10",),
    },
    "pilco_noisy_pendulum": {"on_observations": ("pilco.filtered=false",)},
    "pilco_cartpole": {"untrained": ("pilco.evaluations=1", "pilco.restarts=1")},
    "pilco_mountaincar": {"untrained": ("pilco.evaluations=1", "pilco.restarts=1")},
    "pilco_nn_pendulum": {"untrained": ("pilco_nn.evaluations=1", "pilco_nn.restarts=1")},
    "pilco_pendulum": {"untrained": ("pilco.evaluations=1", "pilco.restarts=1")},
    "cem_cartpole": {"no_selection": ("cem.elite=1.0",)},  # all candidates are the elite
}

SOURCES = {"bc_cartpole": ("bc.source", "ppo_cartpole")}
"""Job -> the key that names a recorded run, and the job whose run of the same seed that is."""


def trained(job: str, seed: int, out: Path, name: str = "", sets: tuple[str, ...] = ()) -> dict[str, Any]:
    """summary.json of one run; a run that exists is not repeated."""
    folder = out / (name or f"{job}-{seed}")
    if not (folder / "summary.json").exists():
        tool = Path(sys.executable).parent / "hpc-rl"
        if job in SOURCES:
            key, teacher = SOURCES[job]
            trained(teacher, seed, out)
            sets = (f"{key}={out.absolute() / f'{teacher}-{seed}'}", *sets)
        settings = [part for item in (f"seed={seed}", *sets) for part in ("--set", item)]
        subprocess.run([tool, "run", job, *settings, "--no-roofline", "--out", folder], check=True)
    figures: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return figures


def judged(folder: Path, episodes: int = 20) -> dict[str, Any]:
    """`hpc-rl eval` of the run's best checkpoint: games that chose nothing, greedy and sampled."""
    tool = Path(sys.executable).parent / "hpc-rl"
    line = [tool, "eval", folder, "--episodes", str(episodes), "--json"]
    figures: dict[str, Any] = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    return figures


def steps_to_target(summary: dict[str, Any]) -> float:
    """Env steps until the target return; infinite where the run ended before it."""
    return float(summary["env_steps"]) if str(summary["reason"]).startswith(REACHED) else math.inf


def table(
    name: str, seeds: Sequence[int], rows: Sequence[dict[str, Any]], games: Sequence[dict[str, Any]]
) -> list[str]:
    """A line for each seed, and the median of the steps to the target.

    The return at the end of a run that stops at a target is that target, whatever the method: it is no result. How long
    it took is one, and so is what its best policy does afterwards in games of its own.
    """
    lines = []
    for seed, row, games_of_run in zip(seeds, rows, games, strict=True):
        greedy, sampled = (_told(games_of_run[key]) for key in ("greedy", "sampled"))
        lines.append(
            f"{name} seed {seed}: {_steps(row)}, {row['wall_s'] / 60:.1f} min; greedy {greedy}, sampled {sampled}"
        )
    if not any(row["env_steps"] for row in rows):
        return [*lines, f"{name}: median {statistics.median(row['wall_s'] for row in rows) / 60:.1f} min"]
    middle = statistics.median(steps_to_target(row) for row in rows)
    reached = "target not reached by most" if math.isinf(middle) else f"median {middle:,.0f} env steps to the target"
    return [*lines, f"{name}: {reached}, median {statistics.median(row['wall_s'] for row in rows) / 60:.1f} min"]


def _steps(row: dict[str, Any]) -> str:
    steps = steps_to_target(row)
    if not row["env_steps"]:
        return f"{row['updates']:,} updates on recorded moves"
    return f"target not reached in {row['env_steps']:,} env steps" if math.isinf(steps) else f"{steps:,.0f} env steps"


def _told(games: dict[str, Any]) -> str:
    interval = "" if games["low"] is None else f" [{games['low']:.2f}, {games['high']:.2f}]"
    return f"{games['mean']:.2f}{interval} ({games['distinct_games']} of {games['games']} games distinct)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/learn"))
    parser.add_argument("--only", choices=SEEDS)
    parser.add_argument("--controls", action="store_true", help="leave out the jobs themselves")
    arguments = parser.parse_args()
    for job, seeds in SEEDS.items():
        if arguments.only not in (None, job):
            continue
        if not arguments.controls:
            show(job, job, seeds, arguments.out)
        for name, sets in CONTROLS.get(job, {}).items():
            show(job, f"{job}-{name}", seeds if job in COMPARED else seeds[:2], arguments.out, sets)


def show(job: str, name: str, seeds: Sequence[int], out: Path, sets: tuple[str, ...] = ()) -> None:
    """Train ``job`` with ``sets`` on each seed, in the folders NAME-SEED, and print the table."""
    rows = [trained(job, seed, out, f"{name}-{seed}", sets) for seed in seeds]
    games = [judged(out / f"{name}-{seed}") for seed in seeds]
    print("\n".join(table(name, seeds, rows, games)), flush=True)


if __name__ == "__main__":
    main()
