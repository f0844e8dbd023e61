"""The finished model on the Hugging Face hub; checkpoints never go there."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi
from transformers import TrainingArguments

from contraprune.errors import UserError
from contraprune.runs import RunDirectory


def prepare_repository(arguments: TrainingArguments) -> None:
    """Makes sure, before a long run, that its model can be pushed: the repository is there, and is the user's.

    Raises:
        UserError: it cannot be had.
    """
    if arguments.push_to_hub:
        with _as_user_error(arguments, "log in with 'hf auth login', or leave --push_to_hub away"):
            _repository(arguments)


def publish(directory: RunDirectory, arguments: TrainingArguments) -> None:
    """Pushes ``model/``, with its card, in one commit.

    Raises:
        UserError: that failed; the run is finished all the same.
    """
    if not arguments.push_to_hub:
        return
    advice = (
        f"the run is finished; the same command, or 'hf upload {arguments.hub_model_id} {directory.model}', retries"
    )
    with _as_user_error(arguments, advice):
        HfApi(token=arguments.hub_token).upload_folder(
            repo_id=_repository(arguments),
            folder_path=directory.model,
            revision=arguments.hub_revision,
            commit_message="Model made by contraprune",
        )


def _repository(arguments: TrainingArguments) -> str:
    """The full name of the repository, made where it was missing."""
    api = HfApi(token=arguments.hub_token)
    name: str = api.create_repo(arguments.hub_model_id, private=arguments.hub_private_repo, exist_ok=True).repo_id
    if arguments.hub_revision is not None:
        api.create_branch(name, branch=arguments.hub_revision, exist_ok=True)
    return name


@contextmanager
def _as_user_error(arguments: TrainingArguments, advice: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of many classes: http, names, tokens, no network
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        raise UserError(f"--push_to_hub: {arguments.hub_model_id}: {reason}; {advice}") from error
