"""Compiles the sparse engine while the package is built; without a compiler the package is built without it.

CONTRAPRUNE_REQUIRE_ENGINE=1 makes a failure fatal, for wheels that are published.
"""

import importlib.util
import os
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    """Runs ``contraprune.engine.compile``, which is loaded by its path: its package is not installed yet."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        path = Path(self.root, "src", "contraprune", "engine", "compile.py")
        spec = importlib.util.spec_from_file_location("compile_engine", path)
        assert spec is not None
        assert spec.loader is not None
        engine = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(engine)
        try:
            variants = engine.build()
        except engine.NoCompilerError as error:
            if os.environ.get("CONTRAPRUNE_REQUIRE_ENGINE") == "1":
                raise
            engine.LIBRARY.unlink(missing_ok=True)
            self.app.display_warning(f"built without the sparse engine, which then runs in torch, slower: {error}")
            return
        self.app.display_info(f"sparse engine: {', '.join(variants)}")
        build_data["artifacts"].append(f"src/contraprune/engine/{engine.LIBRARY.name}")
        build_data["pure_python"] = False
        # The library uses no Python API, so one wheel serves every Python 3.
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
