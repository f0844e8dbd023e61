"""Random numbers that depend on named numbers alone, such as (seed, epoch), and not on what was drawn before."""

import numpy as np
import torch


def seeded(*numbers: int) -> torch.Generator:
    """A generator of the CPU for these numbers; other numbers give an independent one."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
