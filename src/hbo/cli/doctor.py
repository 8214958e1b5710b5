"""``hbo doctor``: what is installed here and what it can do."""

from __future__ import annotations

from hbo.cli.options import AsJson
from hbo.cli.output import console, print_json, quiet_libraries


def doctor(as_json: AsJson = False) -> None:
    """Versions, devices, and what each integration supports on this machine."""
    from hbo.run.environment import describe

    with quiet_libraries(stdout=True):
        found = describe()
    if as_json:
        print_json(found)
        return
    from rich.table import Table

    screen = console()
    table = Table("package", "version", title="versions")
    for name, version in found["versions"].items():
        table.add_row(name, version)
    screen.print(table)
    table = Table("what", "use", "state", title="integrations")
    for row in found["integrations"]:
        table.add_row(row["what"], row["use"], row["state"])
    for row in found["setups"]:
        table.add_row(row["what"], "", row["state"])
    screen.print(table)
    for device in found["devices"]:
        screen.print(f"device: {device}", markup=False)
    screen.print(f"cache:  {found['cache_dir']}", markup=False, soft_wrap=True)
