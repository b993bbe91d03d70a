"""Ways out of a run directory and into one: `hpc-rl export` and `hpc-rl import`."""

from __future__ import annotations

from pathlib import Path

import click

from hpc_rl.cli.diagnostics import note, warn


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", "kind", required=True, type=click.Choice(["minari"]), help="A data set of episodes.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of data sets [default: RUN/export].")
@click.option("--id", "id", metavar="NAME-v0", help="Of the data set [default: <job>-v0].")
@click.option("--cut", is_flag=True, help="Keep what there is of episodes that were cut off, as truncated.")
def export(run: Path, kind: str, out: Path | None, id: str | None, cut: bool) -> None:
    """Write what RUN recorded for other programs; prints where it is. A run that goes on gives its closed segments."""
    from hpc_rl.export import to_minari

    result = to_minari.export(run, out or run / "export", id, cut)
    for fault in result.faults:
        warn(fault)
    note(f"{result.episodes} episodes, {result.env_steps} env steps{_left_out(result.cut, cut)}")
    note(f"MINARI_DATASETS_PATH={result.folder} python -c \"import minari; minari.load_dataset('{result.id}')\"")
    click.echo(result.folder / result.id)


def _left_out(cut: int, kept: bool) -> str:
    if not cut:
        return ""
    what = "are among them as truncated" if kept else "are left out (--cut keeps them as truncated)"
    return f"; {cut} that the run's end, a restart or a gap cut off {what}"
