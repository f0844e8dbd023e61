"""The sparse format, and the CPU engine that runs models of BERT's kind from it.

``engine.format`` is the file; it holds any transformers model. ``engine.model`` runs those of a known family with
the compiled kernels (``engine/kernels``), or where there was no compiler with torch.
"""

from contraprune.engine.format import FILE
from contraprune.engine.loading import is_sparse, load_sparse, write_sparse
from contraprune.engine.model import accelerate

__all__ = ["FILE", "accelerate", "is_sparse", "load_sparse", "write_sparse"]
