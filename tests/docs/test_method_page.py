"""check_method names what is wrong with a method's file: the one of docs/write-a-method.md with a fault each.

Mutations seen to fail: the greedy action not compared; only one update after load; the random state not looked at; the
state loaded into a learner of the same seed; the rewards of moves that are not valid left as they are; no arrivals
shown to the learner, or those of the first fragment only.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_rl.methods import FOLDER
from hpc_rl.testing import check_method
from tests.docs.pages import page

(CODE,) = [block.code for block in page("docs/write-a-method.md").blocks if block.file.startswith("hpc_rl/")]
FAULTS = [
    (
        "best = self.net(step.observation).argmax(-1)",
        "best = torch.randint(2, (len(noise),))",
        "act draws from torch's",
    ),
    ("torch.where(noise[:, 0] < exploration, random, best), {}, {}", "random, {}, {}", "exploration 0 depends on"),
    ("random, best), {}, {}", "random, best)[:, None], {}, {}", "act's action is int64 [4, 1]; the schema says"),
    ('"rounds": self.rounds}', '"rounds": 99}', "the update after load(state()) is another one"),
    ('"grad_norm": norm}', '"grad_norm": norm / 0.0}', "raises ZeroDivisionError"),
    ('"grad_norm": norm}', '"grad_norm": float("nan")}', "the metric grad_norm is nan"),
    (
        "        norm = self.group.apply_gradients",
        "        norm = 1.0 if summed else self.group.apply_gradients",
        "weights",
    ),
    ('TOPOLOGIES = ("solo", "allreduce")', 'TOPOLOGIES = ("alone",)', "must be a tuple of topologies"),
    ("= 20_000\n", "= 20_000\n    device: torch.device = torch.device('cpu')\n", "Config cannot be read"),
    ("ALGORITHM = ", "METHOD = ", "defines no ALGORITHM"),
    ("self.target.data.copy_(", "len(", "the update after load(state()) is another one"),
    ("    def state(self)", "    def states(self)", "abstract"),
    ("huber(y - q,", "huber(y[:, None] - q,", "loss of shape [32, 32] has weights of shape [32]"),
    ("config.discount * batch", "config.dicsount * batch", "AttributeError (algorithms/foo.py, line "),
    ("self.min_size)", 'self.min_size, ("rewards",))', "arrivals names 'rewards'; a fragment has the leaves action, "),
    ('"q_mean", "munchausen")', '"q_mean")', "2 metrics (loss, q_mean) and their count take 3 sums, not 4"),
]


def test_the_page_is_sound(method_folder: Path) -> None:
    (method_folder / "foo.py").write_text(CODE)
    assert check_method("foo") == []
    assert check_method("foo", ["Pendulum-v1"]) == [
        "foo suits none of Pendulum-v1; name an environment that it learns in"
    ]


@pytest.mark.parametrize(("old", "new", "words"), FAULTS)
def test_a_fault_gets_its_sentence(old: str, new: str, words: str, method_folder: Path) -> None:
    assert CODE.count(old) == 1, old
    (method_folder / "foo.py").write_text(CODE.replace(old, new))
    sentences = check_method("foo", ["toy/catch"])
    assert any(words in sentence for sentence in sentences), sentences
    assert all("\n" not in sentence for sentence in sentences)


def test_a_loss_over_moves_that_never_happened_is_named(method_folder: Path) -> None:
    code, weight = (FOLDER / "a2c.py").read_text(), "weight = batch.valid.float()"
    assert code.count(weight) == 1
    (method_folder / "foo.py").write_text(code.replace(weight, "weight = torch.ones_like(batch.reward)"))
    (sentence,) = check_method("foo", ["toy/catch"])
    assert "learns from the move into the next episode" in sentence


ARRIVED = """
    def arrived(self, rows: Mapping[str, Tensor]) -> None:
        self.moves, self.total = self.moves + rows["reward"].numel(), self.total + float(rows["reward"].abs().sum())

    def state(self)"""


@pytest.mark.parametrize("kept", [True, False])
def test_what_arrives_is_shown_and_must_be_kept(kept: bool, method_folder: Path) -> None:
    """A learner that counts what arrives: a fragment of 4 moves of 4 columns at least every other update."""
    code = CODE.replace("self.min_size)", 'self.min_size, ("reward",))').replace("\n    def state(self)", ARRIVED)
    code = code.replace("        self.rounds = 0\n", "        self.rounds, self.moves, self.total = 0, 0, 0.0\n")
    code = code.replace('"grad_norm": norm}', '"grad_norm": norm + self.total}')
    if kept:
        code = code.replace('"rounds": self.rounds}', '"rounds": self.rounds, "seen": [self.moves, self.total]}')
        code = code.replace(
            '(state["rounds"])\n', '(state["rounds"])\n        self.moves, self.total = state["seen"]\n'
        )
        code = code.replace(
            "        self.rounds += 1\n", "        self.rounds += 1\n        assert self.moves >= 8 * self.rounds\n"
        )
    (method_folder / "foo.py").write_text(code)
    sentences = check_method("foo", ["toy/catch"])
    assert (sentences == []) == kept, sentences
    assert all("the update after load(state())" in sentence for sentence in sentences)
