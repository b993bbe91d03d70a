"""Ways out of a run directory and into one: `hpc-rl export` and `hpc-rl import`."""

from __future__ import annotations

from pathlib import Path

import click

from hpc_rl.cli.diagnostics import note, warn


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", "kind", required=True, type=click.Choice(["minari", "parquet"]), help="Episodes, or tables.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of data sets or tables [default: RUN/export].")
@click.option("--id", "id", metavar="NAME-v0", help="Of the data set [default: <job>-v0].")
@click.option("--cut", is_flag=True, help="Keep what there is of episodes that were cut off, as truncated.")
def export(run: Path, kind: str, out: Path | None, id: str | None, cut: bool) -> None:
    """Write what RUN recorded for other programs; prints where it is. A run that goes on gives its closed segments."""
    if kind == "parquet":
        _export_tables(run, out or run / "export")
        return
    from hpc_rl.export import to_minari

    result = to_minari.export(run, out or run / "export", id, cut)
    for fault in result.faults:
        warn(fault)
    note(f"{result.episodes} episodes, {result.env_steps} env steps{_left_out(result.cut, cut)}")
    note(f"MINARI_DATASETS_PATH={result.folder} python -c \"import minari; minari.load_dataset('{result.id}')\"")
    click.echo(result.folder / result.id)


def _export_tables(run: Path, out: Path) -> None:
    from hpc_rl.export import to_parquet

    result = to_parquet.export(run, out)
    for fault in result.faults:
        warn(fault)
    for file, rows in result.files.items():
        note(f"{file}: {rows} rows")
    click.echo(out)


@click.command("import")
@click.argument("dataset")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run directory.")
@click.option("--algorithm", help="The method that its job names [default: the exported run's, else the first].")
def import_(dataset: str, out: Path, algorithm: str | None) -> None:
    """Write a Minari data set as a run directory, so that the same programs read it.

    DATASET is its folder, or its id in Minari's own folder.
    """
    from hpc_rl.export.from_minari import import_data

    result = import_data(dataset, out, algorithm, warn)
    note(f"{result.episodes} episodes, {result.env_steps} env steps")
    if result.endless:
        warn(f"{result.endless} episodes neither terminated nor were truncated; they count as truncated")
    click.echo(out)


@click.command()
@click.argument("game")
@click.argument("players", nargs=-1, required=True)
@click.option("--games", type=click.IntRange(1), default=1000, show_default=True, help="How many.")
@click.option("--opening", type=click.IntRange(0, 100), default=0, show_default=True, help="Random moves before each.")
@click.option("--set", "arguments", metavar="KEY=VALUE", multiple=True, help="An argument of the game; repeatable.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run directory.")
def record(
    game: str, players: tuple[str, ...], games: int, opening: int, arguments: tuple[str, ...], seed: int, out: Path
) -> None:
    """Have PLAYERS play GAME against each other, and write their games as a run directory to learn from.

    GAME is an environment's id, a player alphabeta:4, uct:1000, perfect, random or checkpoint:RUN; one plays itself,
    of several every pair plays, either of them first as often. Random moves of an opening are not recorded.
    """
    from hpc_rl.export.of_games import Fixture, record_games
    from hpc_rl.opponents import player_of_run
    from hpc_rl.toml import override

    own = override({}, arguments)
    result = record_games(Fixture(game, own, players, games, opening, seed), out, player_of_run)
    note(f"{result.episodes} games, {result.env_steps} moves")
    click.echo(out)


def _left_out(cut: int, kept: bool) -> str:
    if not cut:
        return ""
    what = "are among them as truncated" if kept else "are left out (--cut keeps them as truncated)"
    return f"; {cut} that the run's end, a restart or a gap cut off {what}"
