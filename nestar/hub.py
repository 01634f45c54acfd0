"""A repository on the Hugging Face Hub at one commit; its files come when they are asked for.

What has come once is kept in the Hub client's cache and serves without the Hub, too.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nestar.model import WeightsError

log = logging.getLogger(__name__)

PROBE_SECONDS, PATIENT_SECONDS = 2.0, 6.0
"""How long the Hub may take to answer before the cache is used, and where that has nothing to use; its client
alone would try for minutes."""

UNWRITABLE = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS)
"""Why nothing is written: a folder that is somebody else's or read-only, a disk that is full."""

REFUSED = (401, 403)
"""HTTP answers to one who may not have a file, such as with a token that is no longer valid."""

Progress = Callable[[str, int, int], None]
"""Told of a download on its way: the file's path in the repository, bytes that are here, bytes in all."""


@dataclass(frozen=True)
class HubRepository:
    """A repository at one commit.

    Attributes:
        folder: where its files lie once they have come, under their paths in the repository.
        commit: 40 hex digits.
    """

    name: str
    commit: str
    folder: Path

    @property
    def origin(self) -> str:
        """`user/repo@commit`, with as much of the commit as tells it apart."""
        return f"{self.name}@{self.commit[:7]}"

    @classmethod
    def open(cls, name: str, revision: str | None = None, first: str = "config.json") -> HubRepository:
        """Find the commit that `revision` (default: the main branch) names, by fetching the file `first`.

        Where nothing more can be written into the cache, that is the commit which came before, if one did.

        Raises:
            WeightsError: one sentence on why there is none.
        """
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        named = f"{name}@{revision}" if revision else name
        with _one_sentence(name, revision, named, f"has no {first}: it holds no NestAR weights"):
            reached = _answers(name, first, revision)
            try:
                file = Path(hf_hub_download(name, first, revision=revision, local_files_only=not reached))
            except OSError as error:
                kept = try_to_load_from_cache(name, first, revision=revision)
                if error.errno not in UNWRITABLE or not isinstance(kept, str):
                    raise
                log.warning("The cache takes no more (%s): %s as it came before.", error.strerror, named)
                file = Path(kept)
        folder = file.parents[len(Path(first).parts) - 1]
        return cls(name, folder.name, folder)

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Those of these files that have not come yet."""
        return [path for path in paths if not (self.folder / path).exists()]

    def fetch(self, paths: Iterable[str], progress: Progress | None = None) -> None:
        """Bring the files that have not come yet. One that breaks off is taken up again within the call.

        Raises:
            WeightsError: a file is not there or cannot be had; one sentence names it.
        """
        from huggingface_hub import hf_hub_download

        for path in self.missing(paths):
            with _one_sentence(self.name, self.commit, f"{path} of {self.origin}", f"has no {path}"):
                reached = _answers(self.name, path, self.commit)
                hf_hub_download(
                    self.name,
                    path,
                    revision=self.commit,
                    local_files_only=not reached,
                    tqdm_class=_told(progress, path) if progress else None,
                )
            self._verify(path)

    def _verify(self, path: str) -> None:
        """Weights are kept under their hash, which the client trusts: read it again, and keep no others."""
        here = self.folder / path
        if not here.is_symlink():  # where the system has no links, the client keeps no hash
            return
        # What has come by Xet lies elsewhere, under Xet's own hash, and this is but one more link.
        kept = here.parent / here.readlink()
        if not re.fullmatch("[0-9a-f]{64}", kept.name):  # small files go by another hash
            return
        with kept.open("rb") as file:
            own = hashlib.file_digest(file, "sha256").hexdigest()
        if own != kept.name:
            for each in (kept.resolve(), kept, here):
                each.unlink(missing_ok=True)
            raise WeightsError(f"{path} of {self.origin} came damaged: its hash is not the Hub's. Try again.")


def _brief(revision: str) -> str:
    """A commit's first digits; a branch or tag as it is."""
    return revision[:7] if re.fullmatch("[0-9a-f]{40}", revision) else revision


def _answers(name: str, path: str, revision: str | None) -> bool:
    """Whether the Hub answers in time that the file is there.

    Raises:
        HfHubHTTPError: it answers that there is no such file, or that it may not be had.
        WeightsError: it refuses whoever asks, or is too busy, and the file has not come before.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(name)
    said = (EntryNotFoundError, GatedRepoError, HFValidationError)
    cached = isinstance(try_to_load_from_cache(name, path, revision=revision), str)
    timeout = PROBE_SECONDS if cached else PATIENT_SECONDS
    try:
        get_hf_file_metadata(hf_hub_url(name, path, revision=revision), timeout=timeout)
    except (*said, RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except HfHubHTTPError as error:
        if cached:
            return False
        status = error.response.status_code
        what, then = "does not give", "; try again later" if status == 429 or status >= 500 else ""
        if status in REFUSED:
            what, then = "refuses", "; check HF_TOKEN, or log in anew"
        raise WeightsError(f"The Hub {what} {path} of {name} (HTTP {status}){then}.") from None
    except Exception:  # no network, a time-out, a server error: the cache may still serve
        return False
    return True


@contextmanager
def _one_sentence(name: str, revision: str | None, named: str, absent: str) -> Iterator[None]:
    """The Hub client's errors as one sentence each.

    Args:
        named: what was asked for; absent: what the repository then lacks, after "Hub repository user/repo".
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        FileMetadataError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except WeightsError:
        raise
    except GatedRepoError:  # a kind of RepositoryNotFoundError: it must come first
        raise WeightsError(f"Hub repository {named} is gated: ask for access and log in.") from None
    except RevisionNotFoundError:
        raise WeightsError(f"Hub repository {name} has no revision {revision!r}.") from None
    except LocalEntryNotFoundError:  # a kind of EntryNotFoundError
        raise WeightsError(f"The Hub does not answer and {named} is not in the cache.") from None
    except EntryNotFoundError:
        at = f"{name}@{_brief(revision)}" if revision else name
        raise WeightsError(f"Hub repository {at} {absent}.") from None
    except RepositoryNotFoundError:
        raise WeightsError(f"Hub repository {named} was not found, or is private.") from None
    except HFValidationError:
        raise WeightsError(
            f"{name!r} is neither a folder here nor a Hub repository id (user/name).", name
        ) from None
    except FileMetadataError:
        raise WeightsError(f"What answers for the Hub does not describe {named}.") from None
    except OSError as error:
        if "onsistency check" in str(error):  # the client's word for a file of another length
            raise WeightsError(f"{named} came incomplete: try again.") from None
        why = error.strerror or type(error).__name__
        raise WeightsError(f"{named} could not be downloaded ({why}).") from None
    except Exception as error:
        raise WeightsError(f"{named} could not be downloaded ({type(error).__name__}).") from None


def _told(progress: Progress, path: str) -> type[tqdm]:
    """The client's progress bar, as one that tells `progress` and shows nothing."""

    class Told(tqdm):
        def __init__(self, *arguments: Any, **options: Any):
            options.pop("name", None)
            super().__init__(*arguments, **{**options, "disable": False, "file": _Nowhere()})

        def display(self, *_: Any, **__: Any) -> None:
            pass

        # A bar that has these counts what is written to the disk; else a second one counts what comes by Xet.
        def update_transfer(self, *_: Any) -> None:
            pass

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
            pass

        def update(self, n: float | None = 1) -> bool | None:
            moved = super().update(n)
            progress(path, int(self.n), int(self.total or 0))
            return moved

    return Told


class _Nowhere:
    """A stream that swallows what is written to it."""

    def write(self, _: str) -> None:
        pass

    def flush(self) -> None:
        pass
