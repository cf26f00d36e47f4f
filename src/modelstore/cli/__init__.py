"""The ``modelstore`` command. Results go to stdout; logs, progress and errors to stderr."""

import os
import signal
import sys
from importlib import import_module
from typing import Any, Final, NoReturn

import click

from modelstore.cli.output import Output
from modelstore.errors import ModelStoreError

__all__ = ["cli", "main"]

#: Loaded when they are asked for: a command pays only for what it needs.
_COMMANDS: Final = {
    "fetch": "modelstore.cli.fetch:fetch",
    "path": "modelstore.cli.inspect:path",
    "key": "modelstore.cli.inspect:key",
    "list": "modelstore.cli.inspect:list_models",
    "show": "modelstore.cli.inspect:show",
    "verify": "modelstore.cli.maintain:verify",
    "remove": "modelstore.cli.maintain:remove",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = _COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="llm-modelstore", prog_name="modelstore")
@click.option("--tier", "tiers", metavar="LOCATION", multiple=True, help="A tier; repeat it, fastest first.")
@click.option("--config", metavar="FILE", help="A TOML file of settings.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no warnings.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is being done, and where an error came from.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", help="How stderr is written.")
@click.pass_context
def cli(
    ctx: click.Context, tiers: tuple[str, ...], config: str | None, quiet: bool, verbose: bool, log_format: str
) -> None:
    """Put LLM weights where a serving engine can read them: once, verified, from the nearest place that has them.

    \b
    Examples:
      modelstore fetch https://example.com/model.gguf
      modelstore --tier /mnt/nvme/modelstore fetch ./my-model --layout vllm
      modelstore path https://example.com/model.gguf
    """
    output = _output(ctx)
    output.set_up(quiet=quiet, verbose=verbose, as_json=log_format == "json")
    ctx.obj.update(output=output, tiers=list(tiers) or None, config=config)


def _output(ctx: click.Context) -> Output:
    output: Output = ctx.ensure_object(dict)["output"]
    return output


class _Terminated(BaseException):
    """SIGTERM came."""


def _on_sigterm(_signal: int, _frame: Any) -> NoReturn:
    raise _Terminated


def main() -> NoReturn:
    """Run the command and exit with its code (docs/cli.md)."""
    output = Output()
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        result = cli.main(prog_name="modelstore", standalone_mode=False, obj={"output": output})
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except ModelStoreError as error:
        code = error.exit_code
        output.error(str(error), code, error)
    except click.exceptions.NoArgsIsHelpError as error:
        code = 2
        click.echo(error.format_message(), err=True)
    except click.ClickException as error:
        code = 2
        hint = f"; see '{error.ctx.command_path} --help'" if isinstance(error, click.UsageError) and error.ctx else ""
        output.error(error.format_message().rstrip(".") + hint, code, error)
    except (click.Abort, KeyboardInterrupt):
        _leave(output, 130, "interrupted")
    except _Terminated:
        _leave(output, 143, "terminated")
    except Exception as error:  # noqa: BLE001  the boundary: everything unforeseen ends in one sentence
        code = 1
        output.error(_unforeseen(error), code, error)
    sys.exit(code)


def _unforeseen(error: Exception) -> str:
    # Only stdout has no name: what is read and written by name fails with it, or with an error of ours.
    if isinstance(error, OSError) and error.filename is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit would fail again
        return f"the result could not be written: {error.strerror}"
    return f"unforeseen {type(error).__name__}: {error}; please report it, with the output of -v"


def _leave(output: Output, code: int, why: str) -> NoReturn:
    """Go at once: a thread that still waits for the network must not hold the process up."""
    output.error(why, code, None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
