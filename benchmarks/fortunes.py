"""Texts of another subject than any recording's here: the jokes, quotations and sayings of Debian's fortunes, a sentence a line.

    python -m benchmarks.fortunes --languages es cs --out data/fortunes
    python -m benchmarks.reading --other_text es=data/fortunes/es.txt cs=data/fortunes/cs.txt ...
"""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path

from training.prepare_speech import unpacked

PACKAGES = {"en": "fortunes", **{code: f"fortunes-{code}" for code in ("cs", "es", "it", "ru")}}
FOLDERS = {"en": "."}  # of the others: their code
ATTRIBUTION = re.compile(r"^\s*(--|—|–|\(c\)).*$|\x1b\[[0-9;]*m|.\x08", re.MULTILINE)  # who said it, colours, overstriking
END = re.compile(r"(?<=[.!?…])\s+")


def sentences(folder: Path) -> list[str]:
    """Of all files of a folder, in their names' order, each once."""
    found: dict[str, None] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix not in (".dat", ".u8"):  # indexes, and links to the same texts
            for fortune in re.split(r"^%.*$", path.read_text(encoding="utf-8", errors="ignore"), flags=re.MULTILINE):
                text = " ".join(ATTRIBUTION.sub("", fortune).split())
                found |= dict.fromkeys(sentence for sentence in END.split(text) if len(sentence.split()) > 1)
    return [*found]


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--languages", nargs="+", choices=PACKAGES, default=[*PACKAGES])
    parser.add_argument("--out", required=True, type=Path, help="folder of LANGUAGE.txt")
    args = parser.parse_args(argv)
    for code in args.languages:
        root = unpacked([PACKAGES[code]], args.out / "packages" / code)  # apart: the Italian ones lie among the English
        lines = sentences(root / "usr/share/games/fortunes" / FOLDERS.get(code, code))
        random.Random(0).shuffle(lines)
        path = args.out / f"{code}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{path}: {len(lines):,} sentences, {sum(map(len, lines)):,} characters")


if __name__ == "__main__":
    main()
