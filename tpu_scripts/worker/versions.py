"""One line of what is installed: equal on two workers when their packages are the same."""

import hashlib
import platform
from importlib.metadata import distributions

installed = sorted({(d.name.lower(), d.version) for d in distributions()})
shown = {"jax", "jaxlib", "libtpu", "mmx"}
words = [f"python={platform.python_version()}"]
words += [f"{name}={version}" for name, version in installed if name in shown]
print(*words, f"packages={hashlib.sha256(repr(installed).encode()).hexdigest()[:12]}")
