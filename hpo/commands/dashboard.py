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
    help="0 takes a free port.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Where to listen. If other machines can reach it, users log in with the password in "
    "HPO_DASHBOARD_PASSWORD, or with one that is made and printed.",
)
@click.option("--read-only", is_flag=True, help="Refuse every change.")
@click.option(
    "--base-path",
    default="",
    metavar="/PATH",
    help="Set it if a reverse proxy serves the dashboard under this path.",
)
@click.option(
    "--proxy",
    metavar="ADDRESS",
    help="The IP address of your reverse proxy. Only what it says about the browser's address and "
    "https is believed. Default: nobody is.",
)
@click.option("--no-browser", is_flag=True, help="Do not open a browser.")
@database_option
def dashboard(
    study: str | None,
    port: int,
    host: str,
    read_only: bool,
    base_path: str,
    proxy: str | None,
    no_browser: bool,
    database: str | None,
) -> None:
    """Serve the studies as web pages, with plots, notes and files of every trial, until Ctrl-C."""
    from hpo.dashboard.server import Options, serve
    from hpo.store.database import open_database

    options = Options(study, host, port, base_path, read_only, not no_browser, proxy)
    serve(open_database(database), options, click.echo)
