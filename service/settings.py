"""What an operator sets: environment variables with the prefix SUPERDIFF_, or the command line."""

import os
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MEMORY: Final = "memory:"
"""The address of a store that ends with the process."""
_MEMORY_FILES: Final = "memory://superdiff"


class Settings(BaseSettings):
    """Every setting, its default and its bounds."""

    model_config = SettingsConfigDict(env_prefix="SUPERDIFF_", extra="ignore", frozen=True)

    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 for any free one.")] = 8000
    catalog: Annotated[Path | None, Field(description="Catalogue file; none for the models that ship.")] = None
    device: Annotated[str | None, Field(description="Where to compute: cpu, cuda, cuda:1 …; none to choose.")] = None
    fast: Annotated[bool, Field(description="bfloat16 and channels last where a model's entry does not say.")] = False
    preload: Annotated[bool, Field(description="Load every model at start, before /readyz turns green.")] = True
    waiting_jobs: Annotated[int, Field(ge=1, description="Jobs that may wait; further ones are refused.")] = 256
    waiting_rows: Annotated[int, Field(ge=1, description="Network rows that may wait, all jobs together.")] = 8192
    waiting_bytes: Annotated[int, Field(ge=1, description="Bytes of known pictures that may wait.")] = 1 << 30
    caller_jobs: Annotated[int, Field(ge=1, description="Jobs that one caller may have waiting and running.")] = 64
    running_rows: Annotated[int, Field(ge=1, description="Network rows that run at once.")] = 96
    forward_rows: Annotated[int, Field(ge=1, description="Network rows in one forward.")] = 96
    decode_images: Annotated[int, Field(ge=1, description="Pictures decoded between two steps.")] = 8
    ageing_s: Annotated[float, Field(gt=0, description="Seconds of waiting that count as one priority.")] = 30.0
    stretch: Annotated[
        float, Field(ge=1, description="Times as long as first come, first served that sharing may make a job wait.")
    ] = 2.0
    state: Annotated[Path, Field(description="Folder of what outlives the process, where nothing else is said.")] = (
        Field(default_factory=lambda: Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "superdiff")
    )
    database: Annotated[
        str,
        Field(description="Where jobs are kept: sqlite:///FILE, postgresql://… or memory:; none for a file in state."),
    ] = ""
    artifacts: Annotated[
        str, Field(description="Where their files are: a folder or a URL of fsspec; none for a folder in state.")
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
    max_timeout_s: Annotated[float, Field(gt=0, description="The longest time of a request, and the default.")] = 3600.0
    max_body_bytes: Annotated[int, Field(ge=1024, description="Largest request body.")] = 32 << 20
    max_pixels: Annotated[
        int, Field(ge=1, description="Largest picture, in pixels, times images, candidates and particles.")
    ] = 16 << 20
    grace_s: Annotated[float, Field(ge=0, description="Seconds that running jobs get at shutdown.")] = 30.0

    @property
    def database_url(self) -> str:
        """Where jobs are kept."""
        return self.database or f"sqlite:///{self.state.expanduser() / 'jobs.sqlite'}"

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
