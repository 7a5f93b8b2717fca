"""The commands, run from a clone. What they need beside the package is said here at once, before one of them is half-way."""

from importlib.util import find_spec

NEEDED = ("accelerate", "av", "datasets", "evaluate", "filelock", "jinja2", "jiwer", "matplotlib", "num2words", "scipy", "tqdm")

if missing := [name for name in NEEDED if find_spec(name) is None]:
    raise ImportError(f'training/ needs {", ".join(missing)}: pip install -e ".[train]" in this clone.')
