"""Sending to the Hugging Face hub, by huggingface_hub: one commit, or none.

Large files are sent first, to where nobody sees them; the commit that names them comes last. So a
transfer that fails leaves the repository as it was. The token is huggingface_hub's own affair
(HF_TOKEN, or what `hf auth login` has stored), and nothing here reads or shows it.
"""

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from lrqat.checkpoint.roles import CARD
from lrqat.errors import OutputError, refusing
from lrqat.publication.plan import Publication

_MAIN = "main"
_TOKEN = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write there"


def publish(publication: Publication, *, private: bool = False, revision: str | None = None) -> str:
    """Make the repository if there is none, and commit everything to it.

    Args:
        publication: what is sent.
        private: whether a new repository is private; one that is there stays as it is.
        revision: branch, which is made if there is none; None: main.

    Returns:
        Address of the commit.

    Raises:
        OutputError: no token, one that may not write there, or a transfer that failed. Nothing was
            published then.
    """
    api, repository = HfApi(), publication.repository
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
        for name, path in publication.files.items()
    ]
    operations.append(CommitOperationAdd(CARD, publication.card.encode()))
    with refusing(
        OutputError,
        f"nothing was published in {repository}",
        "check the connection, and run the command again",
        cause=_cause,
    ):
        api.create_repo(repository, private=private or None, exist_ok=True)
        if revision not in (None, _MAIN):
            api.create_branch(repository, branch=str(revision), exist_ok=True)
        made = api.create_commit(
            repository,
            operations,
            commit_message=f"Upload {len(operations)} files with lrqat",
            revision=revision,
        )
    return made.commit_url


def _cause(error: BaseException) -> str | None:
    """What a user can do about what the hub says."""
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token; {_TOKEN}"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status in (401, 403):
            return f"the hub refuses the token (status {status}); {_TOKEN}"
    return None
