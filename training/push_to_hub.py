"""Publishes a model folder, or one language of it, in one commit each.

    python -m training.push_to_hub --model ./runs/stage1/model --repo me/master-asr --card ./runs/stage1/card/README.md    # as training.model_card renders it
    python -m training.push_to_hub --model me/master-asr --assembly ./runs/es/assembly --language es --repo me/master-asr-es

Others load a language into the base it was made for, so its base has to be on a hub: where --model is a folder, --base says where that lies.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # started by its path: the clone's root, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import training  # noqa: F401  # says which packages are missing

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.cards_master_asr import said_of
from modeling_master_asr.hub_master_asr import fetch_assembly
from training.loop.launch import run
from training.loop.models import folder_or_id, model_argument, processor_of


def push_model(model, args) -> str:
    """Publishes the model of `--model` with its processor, and returns what to say of it.

    Raises:
        OSError: if the folder or repo holds no processor.
        ValueError, HfHubHTTPError: as the model's `push_to_hub`.
    """
    processor = processor_of(model, args.model)
    info = model.push_to_hub(args.repo, processor=processor, card=args.card, private=args.private)
    return f"Pushed {info.oid}.\nNext: pipeline('automatic-speech-recognition', model='{args.repo}', trust_remote_code=True)"


def push_assembly(model, args) -> str:
    """Publishes the language of `--assembly`, once it has been loaded into its base, and returns what to say of it.

    Raises:
        OSError: if the folder or repo, or a file of it, is not there.
        ValueError: as the model's `load_assembly` and `push_assembly_to_hub`; where `--assembly` holds several languages and none is named.
        HfHubHTTPError: if the upload fails.
    """
    language, sizes, _ = fetch_assembly(args.assembly, args.language)
    in_its_place = ", replace=True" if language in model.languages else ""
    model.load_assembly(args.assembly, language, replace=True)
    info = model.push_assembly_to_hub(language, args.repo, private=args.private, base=args.base, **said_of(model.config, sizes))
    return f"Pushed {info.oid}.\nNext: model.load_assembly('{args.repo}', language='{language}'{in_its_place})"


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_argument, required=True, help="folder or hub id; with --assembly, the base")
    parser.add_argument("--repo", required=True, help="owner/name")
    parser.add_argument("--assembly", type=folder_or_id, help="folder of a language to publish instead of the model")
    parser.add_argument("--language", help="which one, where --assembly holds several")
    parser.add_argument("--base", help="hub id of the base that --assembly was made for (owner/name or owner/name@revision); default: --model, if that is one")
    parser.add_argument("--card", type=Path, help="README.md of the model, with the pictures it shows; default: the repo's, or a short one")
    parser.add_argument("--private", action="store_true", default=None, help="default: as the owner's repos are made, public as a rule")
    args = parser.parse_args(argv)
    if args.base and not args.assembly:
        parser.error("--base names the base of an --assembly; a model is pushed to --repo.")
    if args.language and not args.assembly:
        parser.error("--language names one of an --assembly; a model is pushed whole.")
    if args.card and args.assembly:
        parser.error("--card is a model's; an --assembly's is made of its figures, and what people wrote in the repo's stays.")
    model = MasterASRForCTC.from_pretrained(args.model)
    print(push_assembly(model, args) if args.assembly else push_model(model, args))


if __name__ == "__main__":
    run(main)
