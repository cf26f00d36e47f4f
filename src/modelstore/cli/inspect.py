"""``modelstore path``, ``key``, ``list`` and ``show``: what is there, without changing it."""

import json
from typing import Any

import click

__all__ = ["key", "list_models", "path", "show"]


@click.command()
@click.argument("source")
@click.pass_obj
def path(obj: dict[str, Any], /, source: str) -> None:
    """Print where SOURCE is laid out, if it is complete; exit 11 if not. Never asks the network.

    \b
    Example:
      vllm serve "$(modelstore path https://example.com/model.gguf)"
    """
    from modelstore.store import Store

    click.echo(str(Store(obj["tiers"], obj["config"]).path(source)))


@click.command()
@click.argument("source")
@click.option("--full", is_flag=True, help="All 64 digits.")
@click.option("--explain", is_flag=True, help="Also print what was hashed.")
def key(source: str, full: bool, explain: bool) -> None:
    """Print the cache key of SOURCE: the name of its directory under models/.

    \b
    Example:
      modelstore key s3://my-bucket/models/llama-3.1-8b-q4_k_m.gguf
    """
    from modelstore.source_url import SourceURL

    url = SourceURL.parse(source)
    click.echo(url.key if full else url.key.short)
    if explain:
        click.echo(f"hashed: {url.text}")


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print an array of objects.")
@click.pass_obj
def list_models(obj: dict[str, Any], /, as_json: bool) -> None:
    """List the models that are there.

    \b
    Example:
      modelstore list
    """
    from modelstore.progress import human_size
    from modelstore.store import Store

    entries = Store(obj["tiers"], obj["config"]).list()
    if as_json:
        click.echo(json.dumps([entry.to_json() for entry in entries]))
        return
    rows = [("KEY", "SIZE", "FILES", "FETCHED", "SOURCE")]
    for entry in entries:
        size = human_size(entry.manifest.size) if entry.manifest else "damaged"
        count = str(len(entry.manifest.files)) if entry.manifest else "?"
        rows.append((entry.key.short, size, count, entry.ref.fetched, entry.ref.source))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[4]]))


@click.command()
@click.argument("name", metavar="SOURCE|KEY")
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
@click.pass_obj
def show(obj: dict[str, Any], /, name: str, as_json: bool) -> None:
    """Show one model: its source, digests and files.

    \b
    Example:
      modelstore show abc28e40217b6b6f
    """
    from modelstore.progress import human_size
    from modelstore.store import Store

    value = Store(obj["tiers"], obj["config"]).show(name).to_json(detailed=True)
    if as_json:
        click.echo(json.dumps(value))
        return
    for field in ("key", "source", "manifest", "revision", "fetched", "checked", "tier"):
        if value[field] is not None:
            click.echo(f"{field + ':':<10}{value[field]}")
    click.echo(f"{'size:':<10}{human_size(value['size'])} in {len(value['files'])} files")
    for file in value["files"]:
        click.echo(f"  {file['digest']}  {human_size(file['size']):>10}  {file['path']}")
