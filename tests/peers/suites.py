"""The common test suites of Transformers and PEFT, out of the source archives of the releases that we test with.

    python tests/peers/suites.py      # fetches them into tests/peers/cache

Nothing of theirs is in this repository. What their archives leave out (the parts that their own CI keeps elsewhere) is
replaced by empty stand-ins, so the tests that need it are missing and not silently passed: see `MISSING`.
"""

import importlib
import subprocess
import sys
import tarfile
import types
from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).parent / "cache"
MISSING = {
    "PipelineTesterMixin": "its tests and their tiny models are not in the source archive; tests/test_pipeline.py holds our own",
    "ExportTesterMixin": "not in the source archive",
}


def fetch() -> None:
    """Downloads and unpacks what is not there yet."""
    CACHE.mkdir(exist_ok=True)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    for name in ("transformers", "peft"):
        wanted = f"{name}-{version(name)}"
        if (CACHE / wanted).exists():
            continue
        archive = CACHE / f"{wanted}.tar.gz"
        if not archive.exists():
            subprocess.run(
                [*pip, "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", CACHE, wanted.replace("-", "==", 1)], check=True
            )
        with tarfile.open(archive) as opened:
            opened.extractall(CACHE, filter="data")
    if not (CACHE / "site" / "parameterized").exists():
        subprocess.run([*pip, "install", "--no-deps", "--target", CACHE / "site", "parameterized"], check=True)


def _stand_in(name: str, **names) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(names)
    sys.modules[name] = module


def suite(package: str, module: str):
    """A module of `package`'s tests, e.g. `suite("transformers", "test_modeling_common")`.

    Raises:
        FileNotFoundError: saying how to fetch them.
    """
    tests = CACHE / f"{package}-{version(package)}" / "tests"
    if not tests.exists():
        raise FileNotFoundError(f"{tests} is not there. Fetch the suites first: make test-peers, or python {Path(__file__)}.")
    name = f"tests_of_{package}"
    if name not in sys.modules:
        sys.path.append(str(CACHE / "site"))
        (tests / "__init__.py").touch()
        _stand_in(name, __path__=[str(tests)])
        if package == "transformers":
            common = {"return_dict": False, "output_hidden_states": True, "dtype": "float16"}
            for part, names in {
                "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
                "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
                "utils.test_configuration_utils": {"config_common_kwargs": common},
            }.items():
                _stand_in(f"{name}.{part.split('.')[0]}", __path__=[])
                _stand_in(f"{name}.{part}", **names)
            _stand_in("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)
        else:
            _stand_in("diffusers", StableDiffusionPipeline=None)
    return importlib.import_module(f"{name}.{module}")


if __name__ == "__main__":
    fetch()
