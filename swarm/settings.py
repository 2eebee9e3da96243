"""What the settings of every program share: where they come from, how they look, how a mistake is told.

A setting is one field of a `Settings` class; its flag, its environment variable and its line in
docs/settings.md follow from the field. Precedence: flag > environment > TOML file > default.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from swarm.addresses import check_announce, check_host, check_initial_peer, parse_http
from swarm.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Metavar:
    """How a value looks in --help, where the type alone does not say it."""

    text: str


@dataclass(frozen=True)
class Setting:
    """One setting as people meet it. kind: "switch" (--x / --no-x), "list" (repeatable) or "value"."""

    name: str
    flag: str
    variable: str
    kind: Literal["switch", "list", "value"]
    metavar: str
    default: str
    meaning: str


def _split(value: object) -> object:
    """Lists come as a text with commas or spaces, or as a list of such texts (a repeated flag)."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return value  # pydantic says what is wrong with it
    return [item for text in texts for item in re.split(r"[,\s]+", text) if item]


def _host_port(text: str) -> str:
    parse_http(text)
    return text


def _host_port_or_empty(text: str) -> str:
    return text and _host_port(text)


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


# NoDecode: pydantic-settings would otherwise want JSON in the environment.
InitialPeers = Annotated[
    list[Annotated[str, AfterValidator(check_initial_peer)]],
    NoDecode,
    BeforeValidator(_split),
    Metavar("MULTIADDR"),
    Field(description="Who to find the swarm through, as peers and bootstraps print it: ADDRESS/p2p/PEER_ID."),
]
HostMaddrs = Annotated[
    list[Annotated[str, AfterValidator(check_host)]],
    NoDecode,
    BeforeValidator(_split),
    Metavar("MULTIADDR"),
    Field(
        description="Addresses of this machine to listen on; port 0 picks a free one. "
        "QUIC is /ip4/0.0.0.0/udp/PORT/quic-v1, IPv6 is /ip6/::/tcp/PORT."
    ),
]
AnnounceMaddrs = Annotated[
    list[Annotated[str, AfterValidator(check_announce)]],
    NoDecode,
    BeforeValidator(_split),
    Metavar("MULTIADDR"),
    Field(
        description="Addresses to tell others where they differ from those we listen on: behind a router, "
        "in a container. Without any, others are told what we listen on."
    ),
]
HostPort = Annotated[
    str,
    AfterValidator(_host_port),
    Metavar("HOST:PORT"),
    Field(
        description="Where /metrics, /healthz, /readyz and /status are served: port 0 picks a free one, off "
        "serves nothing. On another than a loopback address, whoever reaches it can read them."
    ),
]
RelayService = Annotated[
    bool, Field(description="Relay traffic of peers that nobody can reach; it costs our bandwidth.")
]
File = Annotated[Path, AfterValidator(Path.expanduser)]
Level = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)]


class Settings(BaseSettings):
    """The settings every program has. Frozen; ``~`` is expanded in defaults too."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_ignore_empty=True, validate_default=True, env_prefix="WAGGLE_"
    )

    http: HostPort = "127.0.0.1:8080"
    nat_port_map: bool = Field(
        default=True,
        description="Ask the router (UPnP, NAT-PMP) to forward a port, so that others can dial us.",
    )
    p2pd_metrics: Annotated[str, AfterValidator(_host_port_or_empty), Metavar("HOST:PORT")] = Field(
        default="", description="Where p2pd serves its own libp2p_* metrics; empty or off serves none."
    )
    log_format: Annotated[Literal["auto", "console", "json"], BeforeValidator(_lower)] = Field(
        default="auto",
        description="Lines for people (console) or machines (json); auto is console on a terminal only.",
    )
    log_level: Level = Field(default="info", description="The least severe message that is logged.")
    hivemind_log_level: Level = Field(
        default="warning", description="The same for hivemind, the library under the network."
    )
    config: File | None = Field(
        default=None, description="A TOML file with a key per setting, named as the flag with _ for -."
    )

    @property
    def http_address(self) -> tuple[str, int] | None:
        """(host, port) to serve HTTP on, or None when it is off."""
        return parse_http(self.http)

    @property
    def p2pd_metrics_address(self) -> str:
        """``host:port`` for p2pd's own metrics, or "" for none."""
        return "" if not self.p2pd_metrics or parse_http(self.p2pd_metrics) is None else self.p2pd_metrics

    @classmethod
    def load(cls: type[S], **flags: object) -> S:
        """The settings of this process; a flag that is None or an empty list was not given.

        Raises UsageError with one line per problem, each naming the setting, its flag and its variable.
        """
        given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None and value != []}
        try:
            return cls(**given)
        except ValidationError as error:
            raise UsageError("\n".join(_problem(cls, detail) for detail in error.errors())) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, file; pydantic-settings' other sources are not ours."""
        path = init_settings().get("config") or env_settings().get("config")
        content = _read(settings_cls, Path(path).expanduser()) if path else {}
        return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=content)


def catalogue(settings: type[Settings]) -> Iterator[Setting]:
    """Every setting of a program as flags and docs/settings.md show it: its own first, then the shared."""
    fields = settings.model_fields
    for name in sorted(fields, key=lambda name: name in Settings.model_fields):
        field = fields[name]
        annotation = field.annotation
        kind: Literal["switch", "list", "value"] = "value"
        if annotation is bool:
            kind = "switch"
        elif get_origin(annotation) is list:
            kind = "list"
        yield Setting(
            name=name,
            flag=_flag(name),
            variable=_variable(settings, name),
            kind=kind,
            metavar=_metavar(field),
            default=_default(field),
            meaning=field.description or "",
        )


def render_table(settings: type[Settings]) -> str:
    """The catalogue in Markdown, as docs/settings.md shows it."""
    lines = ["| flag | variable | default | meaning |", "|---|---|---|---|"]
    for setting in catalogue(settings):
        default = setting.default and f"`{setting.default}`"
        lines.append(f"| `{setting.flag}` | `{setting.variable}` | {default} | {setting.meaning} |")
    return "\n".join(lines)


def _read(settings: type[BaseSettings], path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"config: {path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"config: {path} is not a TOML file: {error}") from None
    known = [name for name in settings.model_fields if name != "config"]
    problems = []
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            problems.append(f"{path}: unknown setting '{key}'{hint}")
    if problems:
        raise UsageError("\n".join(problems))
    return content


def _problem(settings: type[Settings], detail: Any) -> str:
    """One line for one of pydantic's error details (pydantic_core.ErrorDetails)."""
    name = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        return f"{name}: unknown setting"
    if detail["type"] == "missing":
        reason = "is needed and not given"
    elif detail["type"] == "value_error":
        reason = str(detail["ctx"]["error"])
    else:
        message = str(detail["msg"])
        reason = f"'{detail['input']}': {message[:1].lower()}{message[1:]}"
    return f"{name}: {reason} (flag {_flag(name)}, variable {_variable(settings, name)})"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(settings: type[Settings], name: str) -> str:
    return f"{settings.model_config['env_prefix']}{name}".upper()


def _metavar(field: FieldInfo) -> str:
    for annotation in field.metadata:
        if isinstance(annotation, Metavar):
            return annotation.text
    if get_origin(field.annotation) is Literal:
        return "|".join(get_args(field.annotation))
    kinds = str(field.annotation)  # "int | None", "pathlib.Path": the type or a union with it
    return "INTEGER" if "int" in kinds else "PATH" if "Path" in kinds else "TEXT"


def _default(field: FieldInfo) -> str:
    value = field.default
    if field.is_required() or value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, list) else str(value)
