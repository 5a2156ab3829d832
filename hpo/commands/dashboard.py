"""The studies in a browser: dashboard."""

import click

from hpo.commands.shared import complete_study, database_option


@click.command()
@click.option(
    "--study",
    metavar="NAME",
    shell_complete=complete_study,
    help="Open this study's page. Default: the list of studies.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    metavar="N",
    help="0: a free one.",
)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
              help="Where to listen. Beyond this machine there is a login: HPO_DASHBOARD_PASSWORD, or one is made and shown.")  # fmt: skip
@click.option("--read-only", is_flag=True, help="Refuse everything that changes something.")
@click.option(
    "--base-path",
    default="",
    metavar="/PATH",
    help="Behind a reverse proxy that serves it under this path.",
)
@click.option("--no-browser", is_flag=True, help="Open no browser.")
@database_option
def dashboard(
    study: str | None,
    port: int,
    host: str,
    read_only: bool,
    base_path: str,
    no_browser: bool,
    database: str | None,
) -> None:
    """Serve the studies as web pages: curves, plots, notes and files of every trial. Runs until Ctrl-C."""
    from hpo.dashboard.server import serve
    from hpo.store.database import open_database

    serve(
        open_database(database), study, host, port, base_path, read_only, not no_browser, click.echo
    )
