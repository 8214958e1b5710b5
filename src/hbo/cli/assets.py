"""``hbo assets``: the small models and mixtures that need no hub."""

from __future__ import annotations

from typing import Annotated

import typer

from hbo.cli.options import AsJson
from hbo.cli.output import console, print_json, quiet_libraries, tell

app = typer.Typer(
    help="Small models and mixtures by name, kept in the user's cache; no model hub needed.",
    no_args_is_help=False,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A name of `hbo assets list`.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Show what there is."""
    from hbo.assets import is_cached, list_assets

    assets = list_assets()
    if as_json:
        print_json(
            [
                {
                    "name": asset.name,
                    "kind": asset.kind,
                    "description": asset.description,
                    "licence": asset.licence,
                    "download_bytes": asset.download_size,
                    "cached": is_cached(asset.name),
                    "subsets": list(asset.subsets),
                }
                for asset in assets
            ]
        )
        return
    from rich.table import Table

    table = Table("name", "kind", "download", "here", "what", "licence")
    for asset in assets:
        here = "yes" if is_cached(asset.name) else "no"
        size = f"{asset.download_size / 1e6:.0f} MB" if asset.download_size else "-"
        table.add_row(asset.name, asset.kind, size, here, asset.description, asset.licence)
    console().print(table)


@app.command("pull")
def pull(name: Name) -> None:
    """Fetch one, checked against its SHA-256, and print its folder."""
    _print_folder(name)


@app.command("path")
def path(name: Name) -> None:
    """Print one's folder and nothing else, fetching it first if need be."""
    _print_folder(name)


def _print_folder(name: str) -> None:
    from hbo.assets import pull as fetch

    with quiet_libraries(stdout=True):
        folder = fetch(name, tell)
    print(folder)
