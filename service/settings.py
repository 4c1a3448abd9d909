"""What an operator sets: environment variables with the prefix SUPERDIFF_, or the command line."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Every setting, its default and its bounds."""

    model_config = SettingsConfigDict(env_prefix="SUPERDIFF_", extra="ignore", frozen=True)

    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 for any free one.")] = 8000
    catalog: Annotated[Path | None, Field(description="Catalogue file; none for the models that ship.")] = None
    device: Annotated[str | None, Field(description="Where to compute: cpu, cuda, cuda:1 …; none to choose.")] = None
    preload: Annotated[bool, Field(description="Load every model at start, before /readyz turns green.")] = True
    max_waiting: Annotated[int, Field(ge=1, description="Jobs that may wait; further ones are refused.")] = 256
    max_rows: Annotated[int, Field(ge=1, description="Network rows that run at once.")] = 96
    max_body_bytes: Annotated[int, Field(ge=1024, description="Largest request body.")] = 1 << 20
    max_pixels: Annotated[int, Field(ge=1, description="Largest picture, in pixels, times images.")] = 16 << 20
    grace_s: Annotated[float, Field(ge=0, description="Seconds that running jobs get at shutdown.")] = 30.0
