"""Model folders from a hub, without pickles and code."""

from pathlib import Path
from typing import Final

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from pipelines.errors import ModelLoadError, ModelUnavailableError

_FILES: Final = ["*.json", "*.txt", "*.model", "*.safetensors"]
_NOT_FILES: Final = ["flax_*", "openvino_*", "safety_checker/*.safetensors"]


def fetch(repository: str, revision: str | None) -> Path:
    """The folder of a repository in the local cache; files that are missing there are downloaded now.

    Only safetensors and configuration are downloaded, never pickled weights or code.

    Args:
        repository: OWNER/NAME.
        revision: A branch, a tag or a commit; None for the main branch.

    Raises:
        ModelLoadError: There is no such repository or revision.
        ModelUnavailableError: It is not in the cache, and the hub cannot be reached now.
    """
    name = repository if revision is None else f"{repository} at {revision}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_FILES, ignore_patterns=_NOT_FILES))
    except LocalEntryNotFoundError as error:
        raise ModelUnavailableError(f"{name} is not in the cache, and the hub cannot be reached") from error
    except HfHubHTTPError as error:
        raise ModelLoadError(f"{name} cannot be downloaded from the hub: {error}".splitlines()[0]) from error
