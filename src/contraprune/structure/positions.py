"""How long a text may be for a model, and which positions its tokens have."""

from collections.abc import Mapping

from transformers import PretrainedConfig

from contraprune.errors import UserError
from contraprune.structure.architectures import ARCHITECTURES


def skipped_token(config: PretrainedConfig) -> int | None:
    """The token that has no position, those of a text then counting from its id + 1; None: positions are columns."""
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None or not architecture.positions_skip_padding:
        return None
    return config.pad_token_id if architecture.padding_idx is None else architecture.padding_idx


def most_tokens(config: PretrainedConfig) -> int | None:
    """The longest text that a model has positions for; None where they are relative or rotary, or not known."""
    architecture = ARCHITECTURES.get(config.model_type)
    learned = architecture is not None and architecture.learned_positions
    if not learned or not getattr(config, "position_biased_input", True):  # DeBERTa's switch
        return None
    skipped = skipped_token(config)
    return int(config.max_position_embeddings) - (0 if skipped is None else skipped + 1)


def text_length(asked: int | None, *, default: int, models: Mapping[str, PretrainedConfig]) -> int:
    """The tokens that texts are cut to: as asked, else the default as far as every model has positions for it.

    Args:
        asked: ``--max_length``.
        models: the configuration of each by the name it has in messages.

    Raises:
        UserError: one has fewer positions than were asked for.
    """
    for name, config in models.items():
        most = most_tokens(config)
        if most is None:
            continue
        if asked is not None and asked > most:
            raise UserError(f"--max_length: expected at most {most}, the positions of {name}, found {asked}")
        default = min(default, most)
    return default if asked is None else asked
