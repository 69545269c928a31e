"""`pyarrow.compute` for the importer's column work."""

from typing import Any

import pyarrow.compute

# Any: its stubs know neither plain Python values as arguments nor what most functions return for them.
pc: Any = pyarrow.compute
