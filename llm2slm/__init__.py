"""llm2slm: a frozen LLM encodes the prompt once, and a small language model generates the response.

`import llm2slm` loads no heavy library; the first access to `LLM2SLM` imports torch and transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm2slm.models.hybrid import LLM2SLM
    from llm2slm.types import UserError

__version__ = "0.1.0"
__all__ = ["LLM2SLM", "UserError", "__version__"]

_HOME = {"LLM2SLM": "llm2slm.models.hybrid", "UserError": "llm2slm.types"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'llm2slm' has no attribute {name!r}")
