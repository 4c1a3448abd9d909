"""What an operator sets: environment variables with the prefix SUPERDIFF_, or the command line."""

import base64
import binascii
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.logs import LogFormat, LogLevel
from service.strict_json import Bounds

SECRET_PREFIX: Final = "whsec_"  # noqa: S105
"""How secrets of callbacks begin."""
_ORIGIN: Final = re.compile(r"https?://[a-z0-9.\-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?")
MEMORY: Final = "memory:"
"""The address of a store that ends with the process."""


def _listed(value: Any) -> Any:
    """A list as the environment has it: a, b, c."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _is_secret(text: str) -> bool:
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        return False
    return text.startswith(SECRET_PREFIX) and 24 <= len(key) <= 64


_MEMORY_FILES: Final = "memory://superdiff"


class Settings(BaseSettings):
    """Every setting, its default and its bounds."""

    model_config = SettingsConfigDict(env_prefix="SUPERDIFF_", extra="ignore", frozen=True)

    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    require_keys: Annotated[bool, Field(description="Answer nobody without an API key, on loopback too.")] = False
    allow_anyone: Annotated[
        bool, Field(description="Answer everyone without an API key, also where other machines reach the service.")
    ] = False
    state: Annotated[Path, Field(description="Folder of what outlives the process, where nothing else is said.")] = (
        Field(default_factory=lambda: Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "superdiff")
    )
    database: Annotated[
        str,
        Field(
            description="Where jobs and API keys are: sqlite:///FILE, postgresql://… or memory:; "
            "none for a file in state."
        ),
    ] = ""
    trusted_proxies: Annotated[
        list[str], NoDecode, BeforeValidator(_listed), Field(description="Addresses whose X-Forwarded-For is believed.")
    ] = []
    cors_origins: Annotated[
        list[str],
        NoDecode,
        BeforeValidator(_listed),
        Field(description="Origins whose pages may ask: https://HOST, or *; none for no page but the service's own."),
    ] = []
    cors_credentials: Annotated[bool, Field(description="Let those pages send cookies and remembered passwords.")] = (
        False
    )
    callback_hosts: Annotated[
        list[str],
        NoDecode,
        BeforeValidator(_listed),
        Field(description="Hosts that may be called back, HOST or HOST:PORT; none for nobody."),
    ] = []
    callback_secret: Annotated[
        SecretStr, Field(description="Signs callbacks: whsec_ and 24 to 64 random bytes in base64.")
    ] = SecretStr("")
    callback_private: Annotated[
        bool, Field(description="Call back hosts of private networks too, and by plain HTTP.")
    ] = False
    workers: Annotated[
        Annotated[int, Field(ge=0)] | Literal["auto"] | None,
        Field(
            description="Processes that compute: auto for one a device, or a number; 0 for those that others start; "
            "none to compute in the service's own process.",
        ),
    ] = None
    alive_file: Annotated[
        Path | None,
        Field(description="A worker touches this file every second while its engine lives, for whoever watches it."),
    ] = None
    patience_s: Annotated[
        float,
        Field(
            ge=0,
            description="Seconds that a job waits for a worker that computes with its models, or has them loaded, "
            "before another worker takes it.",
        ),
    ] = 5.0
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 for any free one.")] = 8000
    catalog: Annotated[
        Path | None,
        Field(
            description="Catalogue file; none for superdiff.toml where the command is run, else the models that ship."
        ),
    ] = None
    device: Annotated[
        str | None,
        Field(description="Where to compute: cpu, cuda, cuda:1 …; none for CUDA if there is one, else the CPU."),
    ] = None
    fast: Annotated[
        bool,
        Field(
            description="bfloat16 where the processor is faster with it, and channels last, for models whose entry "
            "does not say; pictures differ a little."
        ),
    ] = False
    preload: Annotated[
        bool,
        Field(
            description="Load every model at start, before /readyz turns green; else each when it is first asked for."
        ),
    ] = True
    waiting_jobs: Annotated[int, Field(ge=1, description="Jobs that may wait; further ones get 429.")] = 256
    waiting_rows: Annotated[int, Field(ge=1, description="Network rows that may wait, all jobs together.")] = 8192
    waiting_bytes: Annotated[int, Field(ge=1, description="Bytes of known pictures that may wait.")] = 1 << 30
    caller_jobs: Annotated[int, Field(ge=1, description="Jobs that one caller may have waiting and running.")] = 64
    running_rows: Annotated[
        int,
        Field(
            ge=1,
            description="Network rows that run at once: (components + unconditional) × images, over all jobs; a "
            "larger job runs alone.",
        ),
    ] = 96
    forward_rows: Annotated[
        int,
        Field(
            ge=1, description="Network rows in one forward, for models whose entry does not say; larger sets are split."
        ),
    ] = 96
    decode_images: Annotated[int, Field(ge=1, description="Pictures decoded between two steps.")] = 8
    ageing_s: Annotated[float, Field(gt=0, description="Seconds of waiting that count as one priority.")] = 30.0
    stretch: Annotated[
        float,
        Field(
            ge=1,
            description="How many times as long as by strict first come, first served sharing may make a job wait, "
            "except for equals that came with it; inf for no bound.",
        ),
    ] = 2.0
    artifacts: Annotated[
        str, Field(description="Where jobs' files are: a folder or a URL of fsspec; none for a folder in state.")
    ] = ""
    lease_s: Annotated[
        float, Field(ge=1, description="Seconds without a sign of life after which another process takes up its jobs.")
    ] = 30.0
    checkpoint_s: Annotated[
        float, Field(ge=0, description="Seconds between two checkpoints of a running job that is kept; 0 for none.")
    ] = 30.0
    keep_s: Annotated[float, Field(ge=0, description="Seconds that finished jobs are kept.")] = 86_400.0
    keep_bytes: Annotated[int, Field(ge=0, description="Bytes that their files may take, all together.")] = 8 << 30
    hold_s: Annotated[
        float, Field(ge=0, description="Seconds that finished jobs of synchronous requests stay in memory.")
    ] = 600.0
    hold_bytes: Annotated[int, Field(ge=0, description="Bytes that finished jobs in memory may hold.")] = 512 << 20
    max_job_rows: Annotated[int, Field(ge=1, description="Network rows of one step of one request.")] = 2048
    max_job_work: Annotated[int, Field(ge=1, description="Network rows of one request, over all its steps.")] = 200_000
    max_timeout_s: Annotated[
        float, Field(gt=0, description="The longest timeout_s of a request, in seconds, and the default.")
    ] = 3600.0
    max_body_bytes: Annotated[
        int, Field(ge=1024, description="Largest request body, in bytes; pictures travel in it.")
    ] = 32 << 20
    max_bodies_bytes: Annotated[
        int,
        Field(ge=1024, description="Bytes of bodies held at once, large ones on disk, until their jobs are taken in."),
    ] = 1 << 30
    max_json_depth: Annotated[int, Field(ge=1, le=256, description="How deep a JSON body may nest.")] = 32
    max_json_items: Annotated[int, Field(ge=1, description="Keys and values in a JSON body.")] = 10_000
    max_pixels: Annotated[
        int, Field(ge=1, description="Largest answer, in pixels, times images, candidates and particles.")
    ] = 16 << 20
    max_image_pixels: Annotated[int, Field(ge=1, description="Largest picture that is read, in pixels.")] = 50_000_000
    max_connections: Annotated[
        int, Field(ge=1, description="Open connections and running requests; further requests get 503.")
    ] = 1024
    max_header_bytes: Annotated[int, Field(ge=1024, description="Largest request line and headers.")] = 16 << 10
    header_timeout_s: Annotated[float, Field(gt=0, description="Seconds in which the headers must come.")] = 10.0
    body_timeout_s: Annotated[
        float, Field(gt=0, description="Seconds in which a body must come, besides those for its bytes.")
    ] = 20.0
    body_bytes_per_s: Annotated[
        float, Field(gt=0, description="Bytes of a body that give its client a second more.")
    ] = 32 << 10
    send_timeout_s: Annotated[
        float, Field(gt=0, description="Seconds that a client may take nothing of an answer.")
    ] = 60.0
    keep_alive_s: Annotated[int, Field(ge=1, description="Seconds that a connection may stay idle.")] = 5
    log_format: Annotated[LogFormat, Field(description="Log lines for people, or JSON, one object a line.")] = (
        LogFormat.PRETTY
    )
    log_level: Annotated[LogLevel, Field(description="The least important lines that are written.")] = LogLevel.INFO
    log_prompts: Annotated[bool, Field(description="Write what jobs compose to the log.")] = False
    grace_s: Annotated[float, Field(ge=0, description="Seconds that running jobs get at shutdown.")] = 30.0

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"an origin is http://HOST or https://HOST, with a port or without, or *; not {origin!r}"
                )
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.require_keys and self.allow_anyone:
            raise ValueError("require_keys and allow_anyone exclude one another; set one of them")
        if self.workers is not None and self.database == MEMORY:
            raise ValueError(
                f"workers need a database that processes share: sqlite:///FILE or postgresql://…, not {MEMORY}"
            )
        if self.cors_credentials and "*" in self.cors_origins:
            detail = "cors_origins may not be * where cors_credentials is set: any page could act for who is logged in"
            raise ValueError(f"{detail}; name the origins")
        if self.callback_hosts and not _is_secret(self.callback_secret.get_secret_value()):
            detail = "callback_hosts needs callback_secret: whsec_ and 24 to 64 random bytes in base64"
            raise ValueError(f"{detail}; echo whsec_$(openssl rand -base64 32) makes one")
        return self

    @property
    def database_url(self) -> str:
        """Where jobs and API keys are kept."""
        return self.database or f"sqlite:///{self.state.expanduser() / 'jobs.sqlite'}"

    @property
    def json_bounds(self) -> Bounds:
        """How large a JSON body may be."""
        return Bounds(self.max_json_depth, self.max_json_items)

    @property
    def artifacts_url(self) -> str:
        """Where their files are; in memory where the jobs are."""
        if self.artifacts:
            return self.artifacts
        return _MEMORY_FILES if self.database == MEMORY else str(self.state.expanduser() / "artifacts")

    @property
    def uses_state(self) -> bool:
        """Whether anything is in the folder ``state``."""
        return not self.database or not (self.artifacts or self.database == MEMORY)

    @property
    def stream_grace_s(self) -> float:
        """How long event streams may go on at shutdown: until the jobs that they tell of have had their time."""
        return self.grace_s + 5
