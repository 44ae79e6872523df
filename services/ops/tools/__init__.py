"""The programs beside the stack that watch it: which there are, where they lie, how they are built.

They come from their makers' Go modules, since no package index has all of them: built once per machine, by `make tools`, into a folder
outside the checkout, keyed by version. `convoy up` only asks `find`; nothing is ever built without being asked for.
"""

from services.ops.tools.lookup import cache_dir, find, home
from services.ops.tools.table import COLLECTOR, TOOLS, Tool

__all__ = ["COLLECTOR", "TOOLS", "Tool", "cache_dir", "find", "home"]
