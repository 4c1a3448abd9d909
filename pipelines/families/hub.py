"""Model folders from a hub, their safe files alone."""

from pathlib import Path
from typing import Final

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from pipelines.errors import ModelLoadError

_FILES: Final = ["*.json", "*.txt", "*.model", "*.safetensors"]
_NOT_FILES: Final = ["flax_*", "openvino_*", "safety_checker/*.safetensors"]


def fetch(repository: str, revision: str | None) -> Path:
    """The folder of a repository's state in the local cache, downloaded now if it is not there.

    Weights other than safetensors, and code, are never downloaded.

    Args:
        repository: OWNER/NAME.
        revision: A branch, a tag or a commit; None for the main branch.

    Raises:
        ModelLoadError: There is no such repository or revision, or no way to it.
    """
    told = repository if revision is None else f"{repository} at {revision}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_FILES, ignore_patterns=_NOT_FILES))
    except LocalEntryNotFoundError as error:
        raise ModelLoadError(f"{told} is not in the cache, and the hub cannot be reached") from error
    except HfHubHTTPError as error:
        raise ModelLoadError(f"{told} cannot be had from the hub: {error}".splitlines()[0]) from error
