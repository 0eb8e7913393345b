"""`agentmesh mesh …`: what the founder of a mesh does with its root key. Works on the home's files; needs no node."""

from __future__ import annotations

from pathlib import Path

import click

from agentmesh.cli.output import note, safe_line
from agentmesh.core.errors import NotFound
from agentmesh.core.paths import Home


@click.group("mesh")
def mesh() -> None:
    """Care for the mesh that this home founded."""


@mesh.command("export-root")
@click.argument("file", required=False, metavar="[FILE]")
def export_root(file: str | None) -> None:
    """Copy the mesh's root key to FILE, to keep it in a safe place.

    Only the founder's home has it. Whoever holds it can set the mesh's quotas and revoke every node and invite. FILE must not
    exist; without FILE it is agentmesh-root-….key in this directory.
    """
    from agentmesh.mesh.authority import export_root as export
    from agentmesh.mesh.membership_file import MembershipFile

    home = Home.from_environment()
    membership = MembershipFile.current(home)
    if membership is None:
        raise NotFound("This home is on no mesh, so it has no root key.")
    path = Path(file) if file else Path(f"agentmesh-root-{membership.mesh_id[:8]}.key")
    export(membership, path)
    click.echo(safe_line(path.absolute()))
    note(
        f"This is the root key of the mesh '{membership.name}': whoever holds it can set its quotas and revoke every node and "
        f"invite. Keep it offline. To put it back, copy it to {membership.root_key_path} (mode 0600)."
    )
