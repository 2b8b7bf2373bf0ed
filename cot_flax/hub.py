"""Models and data sets by their names on the Hugging Face hub.

They are fetched once, then taken from the hub's cache. Only files are read: no code of a repository
runs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cot_flax.errors import UserError
from cot_flax.files import path_at

DATA_PATTERNS = (
    *("*.parquet", "*.arrow", "*.jsonl", "*.jsonl.*", "*.ndjson", "*.ndjson.*"),
    *("*.json", "*.json.*", "*.csv", "*.csv.*", "*.tsv", "*.tsv.*"),
)
CONVERTED = "refs/convert/parquet"
"""The branch in which the hub keeps its own Parquet files of a data set."""

ABOUT_DATA = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}
"""Files of Hugging Face's that lie beside the data."""

NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
"""What a name on the hub looks like."""
_URL = re.compile(
    r"hf://datasets/([\w-][\w.-]*/[\w-][\w.-]*)(?:@(refs/\w+/[^/]+|[^/]+))?(?:/(.*))?"
)
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\..*)")


@dataclass(frozen=True)
class Kind:
    """What a repository holds.

    Attributes:
        repo_type: the hub's name for it.
        called: ours.
        example: a name.
        cached_only: how a run is told to ask no network.
        option: what `hf download` needs.
    """

    repo_type: str
    called: str
    example: str
    cached_only: str
    option: str = ""

    def page(self, name: str) -> str:
        """Where a browser finds it."""
        return f"{constants.ENDPOINT}/{'datasets/' if self.repo_type == 'dataset' else ''}{name}"


MODEL = Kind(
    "model",
    "model",
    "google/flan-t5-base",
    "pass --local_files_only (in gin: LOCAL_FILES_ONLY = True)",
)
DATA_SET = Kind(
    "dataset", "data set", "openai/gsm8k", "set HF_HUB_OFFLINE=1", " --repo-type dataset"
)


def is_name(name: str) -> bool:
    """Whether a name, at which nothing lies here, may be one on the hub; so may many a path.

    `runs/base` is none where there is a folder `runs`: it is a path that is wrong.
    """
    first, slash, _ = name.partition("/")
    return bool(NAME.fullmatch(name)) and not (slash and path_at(first).is_dir())


def is_url(text: str) -> bool:
    """Whether it is one for `url_files`."""
    return text.startswith("hf://")


def url_files(url: str) -> list[str]:
    """The files of `hf://datasets/OWNER/NAME@REVISION/PART`, of which revision and part may lack.

    A part is a file, a pattern or a folder.

    Raises:
        UserError: an URL of another form, or what `data_files` raises.
    """
    if not (match := _URL.fullmatch(url)):
        wanted = "hf://datasets/OWNER/NAME, where @REVISION and /FILES may follow"
        raise UserError(url, wanted, "correct it")
    name, revision, part = match.groups()
    patterns = DATA_PATTERNS
    if part:
        is_folder = not any(fnmatch(part, pattern) for pattern in (*DATA_PATTERNS, "*[*?]*"))
        folder = part.rstrip("/")
        patterns = tuple(f"{folder}/{p}" for p in DATA_PATTERNS) if is_folder else (part,)
    return data_files(name, revision=revision, patterns=patterns)


def data_files(
    name: str, *, revision: str | None = None, patterns: Sequence[str] = DATA_PATTERNS
) -> list[str]:
    """The files of a data set on the hub, on this machine; fetched unless the cache has them.

    Args:
        name: such as `openai/gsm8k`.
        revision: a branch, tag or commit; None takes the repository's own files and, where none
            matches, those that the hub converted to Parquet.
        patterns: of paths in the repository, the best first; `*` crosses folders. The files of the
            first pattern that matches any are returned, in order of their names.

    Raises:
        UserError: no connection, no such data set, no access to it, not in the cache, or no file
            that matches.
    """
    choices = [(revision, patterns)]
    if revision is None:
        choices.append((CONVERTED, [p for p in patterns if p.endswith(".parquet")]))
    unavailable: UserError | None = None
    for at, wanted in choices:
        try:
            folder = snapshot(name, wanted, DATA_SET, revision=at)
        except _NoRevision as error:
            unavailable = unavailable or error
            continue
        except _NotCached as error:  # of two revisions the cache may hold the other
            unavailable = error
            continue
        if found := _matching(folder, wanted):
            _check_shards(name, found)
            return [str(folder / path) for path in found]
    if isinstance(unavailable, _NotCached) or (unavailable and revision):
        raise unavailable
    raise UserError(
        f"no file {' or '.join(patterns)} in the data set {name}",
        "files of records",
        f"look at {DATA_SET.page(name)}/tree/main and name one of its files or folders",
    )


class _NotCached(UserError):
    """The cache lacks it and the network is not to be asked, or does not answer."""


class _NoRevision(UserError):
    """The repository is there and has no such branch, tag or commit."""


def snapshot(
    name: str,
    patterns: Sequence[str],
    kind: Kind,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a repository's files, of which those that match `patterns` are fetched.

    Raises:
        UserError: no connection, no such repository or revision, no access to it, or not in the
            cache.
    """
    copy = f"hf download {name}{kind.option} --local-dir DIR"
    put = f"or run `{copy}` elsewhere, copy DIR here and give its path"
    try:
        folder = snapshot_download(
            name,
            repo_type=kind.repo_type,
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=local_files_only,
        )
    except GatedRepoError as error:
        raise UserError(
            f"{name}, which its owners give to some only",
            f"a {kind.called} that you may read",
            f"ask for it on {kind.page(name)}, then `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise _NoRevision(
            f"no revision {revision} of {name}",
            "a branch, a tag or a commit",
            f"look at {kind.page(name)}/tree/main",
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"no {name}: neither a folder in {Path.cwd()} nor a {kind.called} on "
            f"{constants.ENDPOINT}",
            f"a path, or a name such as {kind.example}",
            f"correct it; for a private {kind.called}, `hf auth login`",
        ) from error
    except LocalEntryNotFoundError as error:
        cache = f"its cache at {constants.HF_HUB_CACHE}"
        if local_files_only or constants.HF_HUB_OFFLINE:
            said = "--local_files_only or " * (kind is MODEL) + "HF_HUB_OFFLINE"
            raise _NotCached(
                f"{name} that is not, or not whole, in {cache}",
                f"a {kind.called} fetched before, because {said} is set",
                f"unset it, point HF_HOME at the right cache, {put}",
            ) from error
        raise _unreachable(name, kind, f"(it is not whole in {cache})", put) from error
    except (HTTPError, OSError) as error:
        raise _unreachable(name, kind, f"({type(error).__name__}: {error})", put) from error
    return Path(folder)


def _unreachable(name: str, kind: Kind, why: str, put: str) -> UserError:
    return _NotCached(
        f"no folder {name} in {Path.cwd()}, and no answer from {constants.ENDPOINT} for a "
        f"{kind.called} of this name {why}",
        f"the Hugging Face hub within reach, or the {kind.called} in its cache",
        f"connect, point HF_HOME at a cache that has it and {kind.cached_only}, {put}",
    )


def _matching(folder: Path, patterns: Sequence[str]) -> list[str]:
    """The paths of the first pattern that matches any, but for files about the data."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    usable = [path for path in paths if path.rpartition("/")[2] not in ABOUT_DATA]
    for pattern in patterns:
        if found := [path for path in usable if fnmatch(path, pattern)]:
            return found
    return []


def _check_shards(name: str, paths: Sequence[str]) -> None:
    """Raises UserError where files that count themselves (`x-00000-of-00002`) are not all there."""
    there: dict[tuple[str, str, str], int] = {}
    for match in filter(None, map(_SHARD.fullmatch, paths)):
        key = match[1], match[3], match[4]
        there[key] = there.get(key, 0) + 1
    for (stem, count, suffix), found in there.items():
        if found != int(count):
            raise UserError(
                f"{found} of the {int(count)} files {stem}-*-of-{count}{suffix} of {name}",
                "all of them",
                "take them by a pattern that matches all, or fetch the data set again",
            )
