"""The dropout of a model that is there already."""

from torch import nn


def set_dropout(model: nn.Module, probability: float) -> None:
    """Sets every dropout probability of ``model``: of its dropout layers, and those its attention passes on.

    ``model.config`` keeps what it says, so that what is saved is trained elsewhere as the model was made for.
    """
    for module in model.modules():
        for name, value in list(vars(module).items()):
            is_layers_own = name == "p" and isinstance(module, nn.modules.dropout._DropoutNd)
            if isinstance(value, float) and (is_layers_own or "drop" in name):
                setattr(module, name, probability)
