"""Pruned models in the formats they are deployed in."""

from contraprune.export.job import ExportConfig, run_export

__all__ = ["ExportConfig", "run_export"]
