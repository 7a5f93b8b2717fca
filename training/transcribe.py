"""Transcribes recordings, for people who want no Python.

    python -m training.transcribe clip.mp3 other.wav --model checkpoints/master-asr-whisper-base --language fr
    python -m training.transcribe clip.mp3 --model DIR --assembly runs/es/assembly --language es --json
"""

from __future__ import annotations

import argparse
import json

from tqdm import tqdm
from transformers import pipeline

from modeling_master_asr import MasterASRForCTC, MasterASRPipeline, MasterASRProcessor


def load(model_id: str, assemblies: list[str]) -> MasterASRPipeline:
    """The ASR pipeline of a model folder or hub id, with further languages from assembly folders or repos."""
    model = MasterASRForCTC.from_pretrained(model_id).eval()
    for source in assemblies:
        model.load_assembly(source)
    processor = MasterASRProcessor.from_pretrained(model_id)
    processor = MasterASRProcessor.from_model(model, processor.feature_extractor)
    return pipeline(
        "automatic-speech-recognition", model=model, tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor, pipeline_class=MasterASRPipeline,
    )  # fmt: skip


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--assembly", nargs="*", default=[], help="folders or hub ids of further languages")
    parser.add_argument("--language", required=True)
    parser.add_argument("--json", action="store_true", help="one JSON object a file, with word times in seconds")
    args = parser.parse_args(argv)
    asr = load(args.model, args.assembly)
    for path in tqdm(args.files, disable=len(args.files) == 1):
        options = {"return_timestamps": "word"} if args.json else {}
        result = asr(path, language=args.language, chunk_length_s=28, **options)
        if args.json:
            words = [
                {"word": c["text"], "start_s": round(c["timestamp"][0], 2), "end_s": round(c["timestamp"][1], 2)}
                for c in result["chunks"]
            ]
            print(json.dumps({"file": path, "language": args.language, "text": result["text"], "words": words}, ensure_ascii=False))
        else:
            print(result["text"] if len(args.files) == 1 else f"{path}\t{result['text']}")


if __name__ == "__main__":
    main()
