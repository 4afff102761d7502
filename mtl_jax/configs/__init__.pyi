# Type checkers do not follow the `__path__` of __init__.py.
from typing import Any

def __getattr__(name: str) -> Any: ...
