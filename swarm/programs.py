"""How every program is typed and how it ends: flags made from settings, a clear line instead of a traceback."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from swarm.errors import WaggleError
from swarm.settings import Setting, Settings, catalogue

S = TypeVar("S", bound=Settings)


def new_app(help_text: str, **options: Any) -> typer.Typer:
    """A typer program in our manner: plain help, no completion flags, no decorated tracebacks."""
    return typer.Typer(
        help=help_text,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
        **options,
    )


def version() -> str:
    """The version of Waggle, as /status and --version tell it; "unknown" in a checkout that is not installed."""
    try:
        return metadata.version("waggle")
    except metadata.PackageNotFoundError:
        return "unknown"


def command(
    settings: type[S], run: Callable[..., int], help_text: str, switches: Mapping[str, str] = MappingProxyType({})
) -> Callable[..., None]:
    """A typer command with one flag per setting, which loads the settings, sets up logs and calls `run`.

    run: gets the settings, and a keyword for each of `switches`; returns the exit code. A flag that is not given is
    None, so that environment, file and default apply. switches: name -> help of flags that are no settings.
    """

    def start(**flags: object) -> None:
        from swarm import logs

        given = {name: bool(flags.pop(name)) for name in switches}
        chosen = settings.load(**flags)
        logs.configure(chosen.log_format, chosen.log_level, chosen.hivemind_log_level)
        raise typer.Exit(run(chosen, **given))

    def parameter(name: str, default: object, annotation: object) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    # PEP 362: inspect.signature, and with it typer, takes the flags from here.
    start.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *(parameter(one.name, None, _annotation(one)) for one in catalogue(settings)),
            *(
                parameter(name, False, Annotated[bool, typer.Option(f"--{name}", help=text)])
                for name, text in switches.items()
            ),
        ]
    )
    start.__doc__ = help_text
    return start


def main(app: Callable[[], object], name: str = "waggle") -> NoReturn:
    """Runs a program and ends the process with its exit code; expected failures are told as "name: line".

    A fault of ours keeps its traceback, which is what a report of it needs (exit code 1).
    """
    code: str | int | None = 0
    try:
        app()
    except WaggleError as error:
        lines = str(error).splitlines() or [type(error).__name__]
        sys.stderr.write("".join(f"{name}: {line}\n" for line in lines))
        code = error.exit_code.value
    except KeyboardInterrupt:
        code = 130  # 128 + SIGINT, as shells have it
    sys.exit(code)


def _annotation(setting: Setting) -> object:
    """The typer option of a setting. Values stay text: what is valid is said in one place, the settings."""
    default = f"; default {setting.default}" if setting.default else ""
    meaning = f"{setting.meaning} [{setting.variable}{default}]"
    if setting.kind == "switch":
        declaration = f"{setting.flag}/--no-{setting.flag.removeprefix('--')}"
        return Annotated[bool | None, typer.Option(declaration, help=meaning, show_default=False)]
    if setting.kind == "list":
        meaning = f"{setting.meaning} Repeat it, or separate with commas. [{setting.variable}{default}]"
    option = typer.Option(setting.flag, help=meaning, metavar=setting.metavar, show_default=False)
    return Annotated[list[str] | None, option] if setting.kind == "list" else Annotated[str | None, option]
