"""The command line: all commands under their names."""

import click

from hpo import __version__
from hpo.commands import (
    confirm,
    control,
    dashboard,
    effects,
    machine,
    past,
    results,
    script,
    search,
    studies,
    watch,
)
from hpo.commands.shared import Commands


@click.group(cls=Commands)
@click.version_option(__version__, prog_name="hpo")
def main() -> None:
    """Hyperparameter optimization for speech-BCI phoneme decoders.

    Start with: hpo launch --study lr-aug

    A training script of your own: hpo try --study FILE, then hpo launch --study FILE
    """


for command in (
    search.launch,
    search.worker,
    search.budget,
    script.try_,
    script.recipe,
    script.script_helper,
    watch.status,
    watch.logs,
    studies.studies,
    studies.delete,
    control.pause,
    control.resume,
    control.stop,
    control.kill,
    control.enqueue,
    control.note,
    dashboard.dashboard,
    results.report,
    results.export,
    results.evaluate,
    past.import_,
    past.backtest,
    confirm.confirm,
    confirm.ablate,
    effects.effects,
    effects.ensemble,
    effects.plan,
    machine.doctor,
    machine.data,
    machine.database,
):
    main.add_command(command)

if __name__ == "__main__":
    main()
