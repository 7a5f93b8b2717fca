"""Transcribes recordings, for people who want no Python. A recording that cannot be read is named, the others are read, and the exit code is 1.

    python -m training.transcribe clip.mp3 other.wav --model ./checkpoints/master-asr-whisper-base --language fr
    python -m training.transcribe clip.mp3 --model DIR --assembly ./runs/es/assembly --language es --json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if not __package__:  # started by its path: the clone's root, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import training  # noqa: F401  # says which packages are missing

from tqdm import tqdm

from modeling_master_asr import MasterASRForCTC, MasterASRPipeline
from modeling_master_asr.audio_master_asr import DOWNLOAD_TIMEOUT_S, MAX_DOWNLOAD_BYTES, MAX_DURATION_S
from modeling_master_asr.pipeline_master_asr import LIMITS
from training.loop.config import positive, speak_any_script
from training.loop.models import folder_or_id, processor_of, resolve_model

CHUNK_S = 10  # 28 s make a twentieth more errors in the shipped model's languages and take a third more time (24 minutes, seen without a file)


def load(model_id: str, assemblies: list[str]) -> MasterASRPipeline:
    """The ASR pipeline of a model folder or hub id, with further languages from assembly folders or repos."""
    model_id = resolve_model(model_id)
    model = MasterASRForCTC.from_pretrained(model_id, assemblies=assemblies).eval()
    processor = processor_of(model, model_id)
    return MasterASRPipeline(model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor)


def spoken(path: str, result: dict, language: str) -> str:
    """A line of JSON: the text, and words with times in seconds."""
    words = [
        {"word": c["text"], "start_s": round(c["timestamp"][0], 2), "end_s": round(c["timestamp"][1], 2)} for c in result["chunks"]
    ]
    return json.dumps({"file": path, "language": language, "text": result["text"], "words": words}, ensure_ascii=False)


def main(argv=None) -> int:
    """Returns the exit code: 0, or 1 if a recording could not be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="recordings: paths, or URLs")
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--assembly", type=folder_or_id, action="append", default=[], help="folder or hub id of a further language, or of one in the place of the model's; once for each")
    parser.add_argument("--language", required=True, help="code of what is spoken in them, one of the model's or an assembly's")
    parser.add_argument("--json", action="store_true", help="one JSON object a file, with word times in seconds")
    parser.add_argument("--max_duration_s", type=positive, default=MAX_DURATION_S, help="longer recordings are refused")
    parser.add_argument("--download_timeout_s", type=positive, default=DOWNLOAD_TIMEOUT_S, help="in which a URL has to arrive")
    parser.add_argument("--max_download_bytes", type=positive, default=MAX_DOWNLOAD_BYTES, help="what a URL may hold")
    args = parser.parse_args(argv)
    speak_any_script()
    try:
        asr = load(args.model, args.assembly)
        asr.model.config.check_language(args.language)
    except (OSError, ValueError, KeyError) as error:
        parser.exit(1, f"{error.args[0] if isinstance(error, KeyError) else error}\n")
    failed, limits = 0, {name: getattr(args, name) for name in LIMITS}
    for path in tqdm(args.files, disable=len(args.files) == 1):
        options = {"return_timestamps": "word"} if args.json else {}
        result = asr(path, language=args.language, chunk_length_s=CHUNK_S, on_error="return", **limits, **options)
        if result["text"] is None:
            failed += 1
            tqdm.write(result["error"], file=sys.stderr)
        elif args.json:
            print(spoken(path, result, args.language))
        else:
            print(result["text"] if len(args.files) == 1 else f"{path}\t{result['text']}")
    if failed:
        print(f"{failed} of {len(args.files)} files could not be read.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
