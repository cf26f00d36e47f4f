"""``modelstore verify`` and ``remove``."""

import json
from typing import TYPE_CHECKING, Any

import click

from modelstore.errors import BlobCorrupt

if TYPE_CHECKING:
    from modelstore.model import Damage, VerifyReport

__all__ = ["remove", "verify"]


@click.command()
@click.argument("names", metavar="[SOURCE|KEY]...", nargs=-1)
@click.option("--repair", is_flag=True, help="Fetch what is damaged again from its source.")
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
@click.pass_obj
def verify(obj: dict[str, Any], /, names: tuple[str, ...], repair: bool, as_json: bool) -> int:
    """Hash models again, or everything that is there; exit 7 if anything stays damaged.

    A damaged blob is moved to .modelstore/quarantine/, so that the next fetch brings it again.

    \b
    Examples:
      modelstore verify
      modelstore verify https://example.com/model.gguf --repair
    """
    from modelstore.store import Store

    progress = obj["output"].progress("repair") if repair else None
    try:
        report = Store(obj["tiers"], obj["config"]).verify(*names, repair=repair, progress=progress)
    finally:
        if progress:
            progress.close()
    if as_json:
        click.echo(json.dumps(_report_json(report)))
    else:
        _print(report)
    return BlobCorrupt.exit_code if report.remaining else 0


def _print(report: "VerifyReport") -> None:
    for damage in report.damaged:
        state = "repaired" if damage in report.repaired else "DAMAGED"
        model = f" (model {damage.model[:16]})" if damage.model else ""
        click.echo(f"{state}: {damage.what}{model} in {damage.where}")
    click.echo(f"{report.checked} blobs and files checked, {len(report.remaining)} damaged")


def _report_json(report: "VerifyReport") -> dict[str, Any]:
    bad = {damage.model for damage in report.remaining}
    return {
        "models": [{"key": key[:16], "source": source, "ok": key not in bad} for key, source in report.models.items()],
        "checked": report.checked,
        "corrupt": [_damage_json("digest", damage) for damage in report.damaged if damage.is_blob],
        "layouts": [_damage_json("path", damage) for damage in report.damaged if not damage.is_blob],
        "repaired": [_damage_json("digest", damage) for damage in report.repaired if damage.is_blob],
    }


def _damage_json(what: str, damage: "Damage") -> dict[str, Any]:
    return {what: damage.what, "tier": damage.where, "model": damage.model[:16] if damage.model else None}


@click.command()
@click.argument("names", metavar="SOURCE|KEY...", nargs=-1, required=True)
@click.pass_obj
def remove(obj: dict[str, Any], /, names: tuple[str, ...]) -> None:
    """Remove models, and the blobs that no other model needs. Directories laid out with --to stay.

    \b
    Example:
      modelstore remove abc28e40217b6b6f
    """
    from modelstore.store import Store

    for entry in Store(obj["tiers"], obj["config"]).remove(*names):
        click.echo(f"removed {entry.key.short}  {entry.ref.source}")
