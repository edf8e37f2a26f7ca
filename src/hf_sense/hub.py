"""Folders to and from the Hub: pushed in one commit, fetched whole at one commit, and refused in words that help.

It moves files and knows nothing of what they hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitInfo, HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]


class Source(NamedTuple):
    """A commit of a repository."""

    repo_id: str
    commit: str


class Fetched(NamedTuple):
    """A folder of the cache, and the commit that it holds."""

    folder: Path
    commit: str


def is_repo_id(name: str) -> bool:
    """Whether ``name`` could be a repository's: ``"name"`` or ``"org/name"``."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def fetch(
    repo_id: str,
    patterns: Sequence[str],
    *,
    what: str,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Fetched:
    """Brings the files that match ``patterns`` into the cache, all from one commit.

    Args:
        repo_id: ``"org/name"``.
        patterns: shell patterns of paths in the repository.
        what: what the caller looks for there, such as ``"a sense dictionary"``, for errors.
        revision: branch, tag or commit; the main branch if not given.
        cache_dir: instead of the Hugging Face cache.
        token: for private and gated repositories; the one of ``hf auth login`` if not given.
        local_files_only: look into the cache alone.

    Raises:
        FileNotFoundError: if there is no such repository or revision, or it is private, or it is not in the cache and
            cannot be fetched.
        PermissionError: if its conditions have not been accepted.
        ConnectionError: if the download broke.
    """
    with explained(repo_id, what, revision, token):
        folder = snapshot_download(
            repo_id,
            revision=revision,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            token=token,
            local_files_only=local_files_only,
            allow_patterns=list(patterns),
        )
    return Fetched(Path(folder), Path(folder).name)


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    what: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    replaces: Sequence[str] = (),
    refuses: str | None = None,
) -> CommitInfo:
    """Uploads a folder in one commit: until it is made the repository's old state stands, whole.

    Args:
        folder: its files go to the repository's root, subfolders included.
        repo_id: made if it is missing.
        what: what the folder holds, for the commit's message and errors.
        private: whether a repository that is made is private.
        token: the one of ``hf auth login`` if not given.
        revision: branch; made from main if it is missing.
        commit_message: its first line.
        commit_description: the rest.
        create_pr: open a pull request instead.
        refuses: a file of the repository's main folder that says it holds something else.
        replaces: shell patterns; files in the repository that match and are not in the folder are deleted.

    Returns:
        What huggingface_hub returns; ``oid`` is the commit.

    Raises:
        ValueError: if the file named by ``refuses`` is there.
        FileNotFoundError: if the repository is not there and may not be made.
        PermissionError: if the token may not write to it.
        ConnectionError: if the upload broke; the repository is as it was.
    """
    api = HfApi(token=token)
    with explained(repo_id, what, revision, token, writes=True):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        if refuses is not None and api.file_exists(repo_id, refuses, revision=revision):
            raise ValueError(
                f"{repo_id} holds something else, as its {refuses} says, and {what} would take its card's place. Push to a "
                "repository of its own."
            )
        # A README that somebody wrote by hand stays.
        kept = [] if _readme_is_ours(api, repo_id, revision) else ["README.md"]
        commit: CommitInfo = api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(folder),
            revision=revision,
            commit_message=commit_message or f"Upload {what.removeprefix('a ')}",
            commit_description=commit_description,
            create_pr=create_pr,
            delete_patterns=list(replaces) or None,
            ignore_patterns=kept or None,
        )
        return commit


def commit_of(repo_id: str, revision: str | None = None, token: str | bool | None = None) -> str:
    """The commit that a revision of a repository is at now.

    Raises:
        FileNotFoundError: if there is no such repository or revision.
        PermissionError: if its conditions have not been accepted.
    """
    with explained(repo_id, "a repository", revision, token):
        return str(HfApi(token=token).repo_info(repo_id, revision=revision).sha)


def _readme_is_ours(api: HfApi, repo_id: str, revision: str | None) -> bool:
    try:
        text = Path(hf_hub_download(repo_id, "README.md", revision=revision, token=api.token)).read_text(
            "utf-8", "replace"
        )
    except EntryNotFoundError:
        return True
    return "library_name: hf_sense" in text or not text.strip()


@contextmanager
def explained(
    repo_id: str, what: str, revision: str | None = None, token: str | bool | None = None, writes: bool = False
) -> Iterator[None]:
    """Turns the Hub's errors into ones that say what to do. Arguments as in ``fetch``; ``writes`` if it is an upload."""
    try:
        yield
    except GatedRepoError as error:
        raise PermissionError(
            f"{repo_id} is gated: open {constants.ENDPOINT}/{repo_id}, accept its conditions, then log in with "
            "`hf auth login` or pass token=."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id} has no branch, tag or commit {revision!r}. Leave revision out for its main branch."
        ) from error
    except RepositoryNotFoundError as error:
        other = _other_kind(repo_id, token)
        if other:
            raise FileNotFoundError(
                f"{repo_id} is a {other} on the Hub, but {what} lies in a model repository. Give that one's id."
            ) from error
        raise FileNotFoundError(
            f"There is no folder and no repository {repo_id!r} that you may {'write to' if writes else 'read'}. Check its "
            "name; if it is private, log in with `hf auth login` or pass token= of an account that may."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise FileNotFoundError(
            f"There is no folder {repo_id!r}, no repository {repo_id}{'' if revision is None else ' at ' + revision} in the "
            "cache as a whole, and the Hub could not be asked (offline mode, local_files_only, or no connection). Load it "
            "once with a connection; what has been fetched already is kept."
        ) from error
    except HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise PermissionError(
                f"The Hub did not allow it: {'writing to' if writes else 'reading'} {repo_id} needs "
                f"{'a token with write access' if writes else 'a token'}. Log in with `hf auth login` or pass token=."
            ) from error
        raise
    except Exception as error:
        if not any(_is_transport(one) for one in (error, error.__cause__)):
            raise
        if writes:
            message = f"The upload to {repo_id} broke ({error}). Nothing of it shows: the repository is as it was. Push again."
        else:
            message = f"The download of {repo_id} broke ({error}). What has been fetched is kept: load it again."
        raise ConnectionError(message) from error


def _is_transport(error: Any) -> bool:
    """Whether the HTTP library that huggingface_hub uses, whichever it is, lost the connection."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or bool(names & {"TransportError", "RequestException"})


def _other_kind(repo_id: str, token: str | bool | None) -> str | None:
    api = HfApi(token=token)
    for kind, name in (("dataset", "data set"), ("space", "Space")):
        try:
            api.repo_info(repo_id, repo_type=kind)
        except Exception:
            continue
        return name
    return None
