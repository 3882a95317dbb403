"""The files of a published model: of a folder, or of an id of the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from etils.epath import Path

from mmx.core import storage
from mmx.core.errors import Unavailable, UserError

# As the hub writes them: owner and name, which neither begin nor end with a sign nor have two in a
# row ("./clip" is a folder that is not there); after @ a branch, tag or commit.
_NAME = r"\w(?:[\w.-]*\w)?"
_ID = re.compile(
    rf"(?![^@]*(?:--|\.\.))(?P<id>{_NAME}/{_NAME})(?:@(?P<revision>[\w.-]+))?", re.ASCII
)


class Repository:
    """A model's repository.

    Args:
      source: a folder, local or ``gs://``; else ``OWNER/NAME[@REVISION]``, whose files are those
        of the local cache of `huggingface_hub` where they are there, downloaded into it otherwise.

    Raises:
      UserError: neither.
    """

    def __init__(self, source: str):
        self.source = str(source)
        folder = storage.path(source)
        self._folder = folder if self.source and folder.is_dir() else None
        self._id = _ID.fullmatch(self.source)
        if self._folder is None and (self._id is None or folder.exists()):
            raise UserError(
                f"{source}: neither a folder of a published model nor an id OWNER/NAME of the "
                "Hugging Face hub"
            )

    def find(self, name: str) -> Path | None:
        """A file of the repository; None when it has none of that name.

        Raises:
          UserError: the hub has no such repository, or refuses.
          Unavailable: the file is not in the cache and the hub does not answer.
        """
        if self._folder is None:
            return self._from_hub(name)
        file = self._folder / name
        return file if file.is_file() else None

    def get(self, name: str) -> Path:
        """:meth:`find`, of a file that has to be there. Raises UserError when it is not."""
        file = self.find(name)
        if file is None:
            raise UserError(f"{self.source}: no {name} in it: not a published model that mmx reads")
        return file

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """:meth:`get`, as a file of this machine."""
        with storage.fetched(self.get(name)) as file:
            yield file

    def _from_hub(self, name: str) -> Path | None:
        import huggingface_hub as hub
        from huggingface_hub import errors

        where = dict(repo_id=self._id["id"], filename=name, revision=self._id["revision"])
        try:
            cached = hub.try_to_load_from_cache(**where)
        except errors.HFValidationError as error:  # its rules are more than ours above
            raise UserError(
                f"{self.source}: no such folder, and no id of the hub ({error})"
            ) from error
        if cached is not None:  # not a name where the cache knows that there is no such file
            return storage.path(cached) if isinstance(cached, str) else None
        try:
            return storage.path(hub.hf_hub_download(**where))
        except errors.LocalEntryNotFoundError as error:  # its word for a hub out of reach
            raise self._out_of_reach(name) from error
        except errors.EntryNotFoundError:
            return None
        except errors.HfHubHTTPError as error:
            if error.response.status_code >= 500:
                raise self._out_of_reach(name) from error
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.source}: no such folder, and the Hugging Face hub refuses ({reason})"
            ) from error
        except (errors.HTTPError, OSError) as error:
            raise self._out_of_reach(name) from error

    def _out_of_reach(self, name: str) -> Unavailable:
        return Unavailable(
            f"{self.source}: no such folder; {name} is not in the cache of "
            "huggingface_hub, and the hub does not answer: name a folder that holds the model"
        )
