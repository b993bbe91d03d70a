"""Games a second of OpenSpiel's Python AlphaZero in self-play of Connect Four; needs open_spiel, jax, flax and optax.

taskset -c 0 python tests/learning/open_spiel_self_play.py --seconds 60

One actor of open_spiel.python.algorithms.alpha_zero with its residual network, as it plays before the first update;
prints {"games", "moves", "seconds"} as JSON. It imports nothing of hpc_rl: `against_open_spiel.py` runs it.
"""

import argparse
import json
import os
import tempfile
import time

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")


class Silent:
    """Of its loggers."""

    def print(self, *_: object) -> None: ...
    def opt_print(self, *_: object) -> None: ...


def main() -> None:
    import pyspiel  # type: ignore[import-not-found]
    from open_spiel.python.algorithms.alpha_zero import alpha_zero, evaluator  # type: ignore[import-not-found]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--simulations", type=int, default=100)
    arguments = parser.parse_args()
    game = pyspiel.load_game("connect_four")
    settings: dict[str, object] = {
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "decouple_weight_decay": False,
        "train_batch_size": 512,
    }
    settings |= {"replay_buffer_size": 2**16, "replay_buffer_reuse": 3, "max_steps": 0, "checkpoint_freq": 100}
    settings |= {"actors": 1, "evaluators": 0, "evaluation_window": 1, "eval_levels": 1, "verbose": False}
    settings |= {"uct_c": 2.0, "max_simulations": arguments.simulations, "policy_alpha": 1.0, "policy_epsilon": 0.25}
    settings |= {"temperature": 1.0, "temperature_drop": 12, "nn_model": "resnet", "nn_width": 32, "nn_depth": 3}
    shapes = {"observation_shape": game.observation_tensor_shape(), "output_size": game.num_distinct_actions()}
    config = alpha_zero.Config(game="connect_four", path=tempfile.mkdtemp(), quiet=True, **settings, **shapes)
    network = evaluator.AlphaZeroEvaluator(game, alpha_zero._init_model_from_config(config))
    bots = [alpha_zero._init_bot(config, game, network, False) for _ in range(2)]

    def play() -> int:
        return len(alpha_zero._play_game(Silent(), 0, game, bots, 1.0, config.temperature_drop).states)

    play()  # compiles
    games, moves, begin = 0, 0, time.perf_counter()
    while time.perf_counter() - begin < arguments.seconds:
        games, moves = games + 1, moves + play()
    print(json.dumps({"games": games, "moves": moves, "seconds": time.perf_counter() - begin}))


if __name__ == "__main__":
    main()
