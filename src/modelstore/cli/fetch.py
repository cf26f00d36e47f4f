"""``modelstore fetch``."""

import json
from typing import Any

import click

__all__ = ["fetch"]


@click.command()
@click.argument("source")
@click.option("--to", metavar="DIR", help="Lay the model out at DIR, not at <root>/models/<key>.")
@click.option("--layout", metavar="NAME", default="files", show_default=True, help="files or vllm.")
@click.option("--verify", type=click.Choice(["fast", "full"]), default="fast", show_default=True,
              help="full: hash everything that is there already once more.")  # fmt: skip
@click.option("--refresh", is_flag=True, help="Ask the source whether it holds something newer.")
@click.option("--offline", is_flag=True, help="Ask no source; fail if the model is not there.")
@click.option(
    "--connections",
    metavar="N",
    type=click.IntRange(1, 256),
    help="Ranges to read at once.  [default: as many as help]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.pass_obj
def fetch(obj: dict[str, Any], /, source: str, as_json: bool, offline: bool, **options: Any) -> None:
    """Have SOURCE complete, verified and laid out, and print the path.

    SOURCE is a URL (hf://, ollama://, s3://, https://, file://, or one that fsspec knows, such as gs://) or a local
    path. A pin, #sha256=<hex>, makes sure of the bytes; of a repository, a prefix or a directory, ?allow= and ?ignore=
    choose files.

    \b
    Examples:
      modelstore fetch hf://Qwen/Qwen3-0.6B --layout vllm
      modelstore fetch hf://bartowski/Llama-3.2-1B-Instruct-GGUF/Llama-3.2-1B-Instruct-Q4_K_M.gguf
      modelstore fetch ollama://qwen3:0.6b
      modelstore fetch s3://my-bucket/models/llama/
      modelstore fetch https://example.com/model.gguf
      modelstore fetch 'https://example.com/model.gguf#sha256=9f86d081884c7d65…'
      modelstore fetch ./my-model --layout vllm --to /mnt/models
      modelstore fetch './my-model?allow=*.safetensors,*.json' --json
    """
    from modelstore.source_url import SourceURL
    from modelstore.store import Store

    url = SourceURL.parse(source)
    store = Store(obj["tiers"], obj["config"])
    progress = obj["output"].progress(url.text.rstrip("/").rpartition("/")[2])
    try:
        model = store.fetch(url, offline=offline or None, progress=progress, **options)
    finally:
        if progress:
            progress.close()
    click.echo(json.dumps(model.to_json()) if as_json else str(model.path))
