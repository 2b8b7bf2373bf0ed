"""Models by their names on the Hugging Face hub: fetched once, then taken from its cache."""

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from cot_flax.errors import UserError
from cot_flax.text.bpe import HUGGING_FACE, SETTINGS, SPECIAL_TOKENS
from cot_flax.text.tokenizers import SENTENCEPIECE
from cot_flax.weights import peft
from cot_flax.weights.source import Access

_SAFETENSORS = "model*.safetensors"
_NEEDED = (
    "config.json",
    "generation_config.json",
    SENTENCEPIECE,
    HUGGING_FACE,
    SETTINGS,
    SPECIAL_TOKENS,
    "model.safetensors.index.json",
    _SAFETENSORS,
    peft.CONFIG,
    peft.WEIGHTS,
)
_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json", peft.PICKLE)


def download(name: str, access: Access) -> Path:
    """Returns the folder of a model's files; of its weights only what will be read is fetched.

    Args:
        name: such as `google/flan-t5-base`.

    Raises:
        UserError: no connection, no such model, no access to it, or not in the cache.
    """
    folder = _snapshot(name, _NEEDED, access)
    if access.allow_pickle and not any(folder.glob("*.safetensors")):
        folder = _snapshot(name, _PICKLES, access)
    return folder


def _snapshot(name: str, patterns: tuple[str, ...], access: Access) -> Path:
    put = f"or run `hf download {name} --local-dir DIR` elsewhere, copy DIR here and give its path"
    try:
        snapshot = snapshot_download(
            name, allow_patterns=list(patterns), local_files_only=access.local_files_only
        )
    except GatedRepoError as error:
        raise UserError(
            f"{name}, which its owners give to some only",
            "a model that you may read",
            f"ask for it on {constants.ENDPOINT}/{name}, then `hf auth login`",
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"no {name}: neither a folder in {Path.cwd()} nor a model on {constants.ENDPOINT}",
            "a path, or a name such as google/flan-t5-base",
            "correct it; for a private model, `hf auth login`",
        ) from error
    except LocalEntryNotFoundError as error:
        cache = f"its cache at {constants.HF_HUB_CACHE}"
        if access.local_files_only or constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{name} that is not, or not whole, in {cache}",
                "a model fetched before, because --local_files_only or HF_HUB_OFFLINE is set",
                f"unset it, point HF_HOME at the right cache, {put}",
            ) from error
        raise _unreachable(name, f"(it is not whole in {cache})", put) from error
    except (HTTPError, OSError) as error:
        raise _unreachable(name, f"({type(error).__name__}: {error})", put) from error
    return Path(snapshot)


def _unreachable(name: str, why: str, put: str) -> UserError:
    return UserError(
        f"no folder {name} in {Path.cwd()}, and no answer from {constants.ENDPOINT} for a model of "
        f"this name {why}",
        "the Hugging Face hub within reach, or the model in its cache",
        f"connect, point HF_HOME at a cache that has it and pass --local_files_only (in gin: "
        f"LOCAL_FILES_ONLY = True), {put}",
    )
