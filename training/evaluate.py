"""CER and WER per language and macro, each language read with its sentences in mind if it has any, or greedily.

    python -m training.evaluate --model ./checkpoints/master-asr-whisper-base --data demo/manifest.jsonl --out result.json
    python -m training.evaluate --model ./runs/stage1/model --data data/manifest.jsonl --out result.json --row_swap
    python -m training.evaluate --model ... --more_text es=sentences.txt      # what would more of them give? The model stays as it is
    accelerate launch -m training.evaluate ...      # shared among several processes
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # started by its path: the clone's root, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import training  # noqa: F401  # says which packages are missing

from accelerate import Accelerator
from tqdm import tqdm

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.audio_master_asr import DOWNLOAD_TIMEOUT_S
from modeling_master_asr.configuration_master_asr import MAX_TEXT
from modeling_master_asr.trainer_utils import error_rates
from training.loop.config import positive, speak_any_script
from training.loop.data import NO_CLIP, Collator, Features, minutes_of, select
from training.loop.launch import STEPS_BEGUN, WAITING, run
from training.loop.metrics import evaluate_clips, flattered, transcribe_clips
from training.loop.models import folder_or_id, model_argument, processor_of
from training.loop.record import digests_of, facts_of_run, write_json
from training.loop.recordings import MAX_DOWNLOAD_GB
from training.loop.sources import read_data
from training.loop.splits import check_recordings, read_by_first
from training.loop.tables import read_text
from training.loop.text import spelled
from training.loop.watching import mapping_figures


def row_swap(model, processor, features, clips, left_out=(), greedy=False) -> dict[str, dict[str, float]]:
    """Each language's CER with its own head and all else of another's assembly: `{language: {assembly of: CER}}`."""
    collator = Collator(features, processor)
    table = {}
    for code in tqdm(model.languages, desc="row swap"):
        of_language = [clip for clip in clips if clip.language == code and str(clip.audio) not in left_out]
        if of_language:
            references = [clip.text for clip in of_language]
            texts = {other: transcribe_clips(model, processor, collator, of_language, encoded_as=other, greedy=greedy) for other in model.languages}
            table[code] = {other: round(error_rates(read, references)["cer"], 2) for other, read in texts.items()}
    return table


def check_languages(asked: list[str], model, model_id: str) -> None:
    """Stops, before data is read, at languages that the model lacks.

    Raises:
        SystemExit: naming them, and how to get them.
    """
    missing = [code for code in asked if code not in model.languages]
    if missing:
        raise SystemExit(f"{model_id} has no assembly for {missing}. It has {model.languages}. Load theirs with --assembly FOLDER_OR_ID, "
                         "or train them: training/adapt_language.py.")  # fmt: skip


def languages_there(clips, split: str, model) -> list[str]:
    """The model's languages that have clips in a split; those that the model lacks are named.

    Raises:
        SystemExit: where there are none.
    """
    if not clips:
        raise SystemExit(NO_CLIP)
    there = sorted({clip.language for clip in clips if clip.split == split})
    common = [code for code in model.languages if code in there]
    if not common:
        raise SystemExit(f"--data has {split} clips of {there}, the model has {model.languages}: no language in common.")
    if set(there) - set(common):
        print(f"Not scored, the model lacks them: {sorted(set(there) - set(common))}")
    return common


def text_of(given: str) -> tuple[str, list[str]]:
    """`(language, lines)` of LANGUAGE=FILE, for argparse."""
    code, equals, path = given.partition("=")
    try:
        if not (code and equals):
            raise ValueError("no LANGUAGE= in front")
        return code, read_text(Path(path)).splitlines()
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"got {given!r}, which cannot be read ({error}); allowed: LANGUAGE=FILE, a UTF-8 text file, a sentence a line") from error


def read_with_more(model, more: list[tuple[str, list[str]]], clips) -> dict[str, int]:
    """Gives languages further sentences than their own, as many as a config holds, but for those that held-out clips say; returns how many."""
    added: dict[str, int] = {}
    for code, lines in more:
        own = model.config.text(code).splitlines()
        held_out = [clip.text for clip in clips if clip.split != "train" and clip.language == code]
        *_, fitting = spelled(model, code, own, lines, held_out, MAX_TEXT)
        model.config.set_text(code, "\n".join(fitting))  # as they are spelled already
        added[code] = len(fitting) - len(own)
    return added


def main(argv=None) -> None:
    speak_any_script()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_argument, required=True, help="folder or hub id")
    parser.add_argument("--assembly", type=folder_or_id, nargs="*", action="extend", default=[], help="folders or hub ids of further languages, or of some in the place of the model's")
    parser.add_argument("--data", required=True, nargs="+", help="as in training")
    parser.add_argument("--languages", nargs="+", help="default: all the model has clips for")
    parser.add_argument("--allow_outside", action="store_true", help="manifests may name recordings outside of their folder")
    parser.add_argument("--max_download_gb", type=positive, default=MAX_DOWNLOAD_GB, help="of recordings, from one data set of the Hub")
    parser.add_argument("--download_timeout_s", type=positive, default=DOWNLOAD_TIMEOUT_S, help="in which each row or file of a data set of the Hub has to arrive")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--greedy", action="store_true", help="as if no language had sentences")
    parser.add_argument("--more_text", type=text_of, nargs="*", default=[], metavar="LANGUAGE=FILE",
                        help="further sentences, one a line, with which the language is read here; the model is not changed")  # fmt: skip
    parser.add_argument("--row_swap", action="store_true", help="also every language with its own head and all else of every other's")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(argv)
    if args.out.is_dir():
        parser.error(f"--out {args.out} is a folder. Name a file, such as {args.out / 'result.json'}.")
    if args.out.resolve() in {Path(name).resolve() for given in args.data for name in (given, given.partition("=")[2]) if name}:
        parser.error(f"--out {args.out} is what --data names, and would be lost. Name another file.")
    if args.greedy and args.more_text:
        parser.error("--greedy: allowed without --more_text, since nothing is read with sentences then.")
    if len(dict(args.more_text)) < len(args.more_text):
        parser.error(f"--more_text: got {[code for code, _ in args.more_text]}; allowed: a language once. Join its files.")
    args.out.parent.mkdir(parents=True, exist_ok=True)  # now, not when all is read
    accelerator = Accelerator(kwargs_handlers=[WAITING])
    model = MasterASRForCTC.from_pretrained(args.model, assemblies=args.assembly).to(accelerator.device)
    check_languages([*(args.languages or []), *dict(args.more_text)], model, args.model)
    processor = processor_of(model, args.model)
    splits = {args.split, *(("validation", "test") if args.more_text else ())}
    clips = read_by_first(accelerator, lambda: read_data(
        args.data, args.out.parent / "recordings", allow_outside=args.allow_outside, max_download_gb=args.max_download_gb,
        download_timeout_s=args.download_timeout_s, splits=splits,
    ))  # fmt: skip
    added = read_with_more(model, args.more_text, clips)
    for code, lines in args.more_text if accelerator.is_main_process else ():
        print(f"{code!r} is read with {added[code]} of {len(lines)} further sentences in mind; the others are there, said in held-out clips, not to be spelled, or too many.")
    clips = select(clips, args.split, args.languages or languages_there(clips, args.split, model))
    check_recordings(clips)
    features = Features(processor)
    greedy = args.greedy or not any(map(model.config.text, {clip.language for clip in clips}))  # nobody has sentences: nothing else was done
    STEPS_BEGUN.set()  # what is wrong from here on is no setting's
    rates = evaluate_clips(model, processor, features, clips, accelerator, greedy=greedy)
    if not accelerator.is_main_process:
        return
    scored = [clip for clip in clips if str(clip.audio) not in rates.get("left_out", ())]
    result = {**facts_of_run(model), "split": args.split, "minutes": minutes_of(scored), "greedy": greedy, **({"more_text": added} if added else {}), **rates,
              "assemblies": digests_of(model, rates["languages"], with_text=not greedy), "mapping": mapping_figures(model)}
    if args.row_swap:
        result["row_swap_cer"] = row_swap(model, processor, features, clips, rates.get("left_out", ()), greedy)
    for language, rate in rates["languages"].items():
        print(f"{language}\tCER {rate['cer']:.2f}\tWER {rate['wer']:.2f}")
    print("".join(f"{line}\n" for line in flattered(rates)), end="")
    print(f"macro\tCER {rates['macro']['cer']:.2f}\tWER {rates['macro']['wer']:.2f}")
    write_json(args.out, result)  # behind what is printed: if the disk is full, that is left
    print(f"Wrote {args.out}.")


if __name__ == "__main__":
    run(main)
