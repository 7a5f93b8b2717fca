"""Further voices where no speakers are to be had: a synthesizer reads sentences that people have written.

    apt-get install festival festvox-czech-ph festvox-czech-dita festvox-czech-krb festvox-czech-machac
    python -m benchmarks.voices --data data/manifest.jsonl --heard ... --out data/voices_many
    python -m benchmarks.fortunes --languages cs --out data/fortunes
    python -m benchmarks.synthetic_voices --data data/voices_many_heard.jsonl --text data/fortunes/cs.txt --minutes 60 --out data/voices_synthetic.jsonl

Czech, whose four diphone voices Festival has. What validation or test clips say is not among the sentences.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import soundfile
from tqdm import tqdm

from modeling_master_asr.backbone_master_asr import SAMPLING_RATE_HZ
from modeling_master_asr.text_master_asr import build_vocab, normalize
from training.loop.record import read_jsonl, write_jsonl
from training.loop.text import without

LANGUAGE, ENCODING = "cs", "iso-8859-2"
VOICES = ("czech_ph", "czech_dita", "czech_krb", "czech_machac")
MIN_WORDS, MAX_CHARACTERS = 3, 100
AT_ONCE = 50  # sentences a process


def speakable(lines: list[str], clips: list[dict]) -> list[str]:
    """Sentences of the alphabet of the language's clips, of a length that a clip has, which no held-out clip says."""
    known = set(build_vocab(clip["text"] for clip in clips if clip["language"] == LANGUAGE and clip["split"] == "train")) | {" "}
    fitting = [
        line for line in lines if len(line) <= MAX_CHARACTERS and len(line.split()) >= MIN_WORDS and '"' not in line and "\\" not in line
        and set(normalize(line, language=LANGUAGE)) <= known and not any(letter.isdigit() for letter in line)
    ]  # fmt: skip
    return without(fitting, (clip["text"] for clip in clips if clip["split"] != "train"), LANGUAGE)


def spoken(voice: str, sentences: list[str], folder: Path) -> list[Path]:
    """A file of each sentence in a voice."""
    paths = [folder / f"{i}.wav" for i in range(len(sentences))]
    lines = [f"(voice_{voice})"]
    for sentence, path in zip(sentences, paths):
        lines += [f'(set! said (utt.synth (Utterance Text "{sentence}")))', f"(utt.wave.resample said {SAMPLING_RATE_HZ})", f'(utt.save.wave said "{path}" (quote riff))']
    script = folder / "say.scm"
    script.write_text("\n".join(lines), encoding=ENCODING, errors="replace")
    subprocess.run(["festival", "--batch", str(script)], check=True, capture_output=True)
    return paths


def clips_of(voice: str, sentences: Iterator[str], minutes: float, folder: Path) -> Iterator[dict]:
    """Clips of a voice for so many minutes, or as long as there are sentences, written beside the others."""
    left_s, bar, count = minutes * 60, tqdm(total=round(minutes * 60), desc=voice, unit="s"), 0
    while left_s > 0 and (chosen := list(islice(sentences, AT_ONCE))):
        with tempfile.TemporaryDirectory() as where:
            for sentence, path in zip(chosen, spoken(voice, chosen, Path(where))):
                if left_s <= 0:
                    break
                samples, rate_hz = soundfile.read(path)
                duration_s = len(samples) / rate_hz
                name = folder / f"{voice}__{count}.flac"
                soundfile.write(name, samples, rate_hz)
                bar.update(round(duration_s))
                count, left_s = count + 1, left_s - duration_s
                yield {
                    "audio": f"audio/{folder.name}/{name.name}", "language": LANGUAGE, "text": normalize(sentence, language=LANGUAGE),
                    "duration_s": round(duration_s, 3), "speaker": voice, "split": "train",
                }  # fmt: skip
    bar.close()


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="a manifest, which is kept whole")
    parser.add_argument("--text", required=True, type=Path, help="a sentence a line")
    parser.add_argument("--minutes", type=float, default=60.0, help="of all voices together")
    parser.add_argument("--out", required=True, type=Path, help="the manifest with them, in the folder of --data, whose paths it shares")
    args = parser.parse_args(argv)
    if args.out.resolve().parent != args.data.resolve().parent:
        parser.error(f"--out: got {args.out}; allowed: a name in the folder of {args.data}.")
    clips = read_jsonl(args.data)
    sentences = iter(speakable(args.text.read_text(encoding="utf-8").splitlines(), clips))
    folder = args.data.resolve().parent / "audio" / "cs_synthetic"
    folder.mkdir(parents=True, exist_ok=True)
    made = [clip for voice in VOICES for clip in clips_of(voice, sentences, args.minutes / len(VOICES), folder)]
    write_jsonl(args.out, [*clips, *made])
    minutes = sum(clip["duration_s"] for clip in made) / 60
    print(f"{args.out}: {len(made)} clips of {len({clip['speaker'] for clip in made})} synthetic voices, {minutes:.1f} min, beside {len(clips)} others")
    if minutes < args.minutes:
        print(f"{args.text} has too few sentences: {args.minutes - minutes:.1f} of {args.minutes:g} min are missing.")


if __name__ == "__main__":
    main()
