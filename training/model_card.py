r"""Renders a model's card and its picture of language similarity.

    python -m training.model_card --model ./checkpoints/master-asr-whisper-base --evaluation benchmarks/results/evaluate_text.json \
        --facts model_cards/master-asr-whisper-base.json --out model_cards/master-asr-whisper-base

Figures come from the evaluation's JSON, words from --facts, the rest from the model. The card needs matplotlib and scipy (extra `train`).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

if not __package__:  # started by its path: the clone's root, not this folder, holds the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import training  # noqa: F401  # says which packages are missing

import numpy as np
from huggingface_hub import EvalResult, ModelCard

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.cards_master_asr import NEEDS, card_data, code_span, hub_id_of
from training.loop.launch import run
from training.loop.metrics import flattered
from training.loop.models import model_argument
from training.loop.pictures import gate_differences, similarity_figure
from training.loop.record import digests_of

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "model_cards" / "template.md"
READING = {True: "Greedy, no language model", False: "Each language decoded with the character n-gram language model of the sentences that it keeps"}  # by an evaluation's "greedy"
PICTURE = "language_similarity.png"
FACTS = ("title", "repo", "license", "dataset", "training_data", "limits", "licences")


def similarity_words(distances: np.ndarray, languages: list[str]) -> str:
    """The closest and the farthest pairs, in words."""
    if len(languages) < 2:
        return ""
    pairs = [(distances[a, b], f"{languages[b]} and {languages[a]}") for a in range(len(languages)) for b in range(a)]
    low, high = min(pairs)[0], max(pairs)[0]
    near, far = (", ".join(names for distance, names in pairs if distance == at) for at in (low, high))
    return f"Closest: {near} ({100 * low:.0f} % of gates differ); farthest: {far} ({100 * high:.0f} %)."


def render(model, evaluation: dict, facts: dict, evaluation_name: str, words: str) -> ModelCard:
    """The card: template, figures, facts, and `model-index` metadata."""
    config = model.config
    base = hub_id_of(config.base_model)  # a folder of this machine is nobody else's
    results = [
        EvalResult(
            task_type="automatic-speech-recognition", dataset_type="custom", dataset_name=facts["dataset"], dataset_config=code,
            dataset_split=evaluation["split"], metric_type=name, metric_name=name.upper(), metric_value=round(rate[name], 2),
        )
        for code, rate in evaluation["languages"].items() for name in ("cer", "wer")
    ]  # fmt: skip
    tags = ["master-asr", "ctc", "multilingual"]
    data = card_data(config.languages, license=facts["license"], base_model=base, tags=tags, model_name=facts["title"], eval_results=results)
    known = ", ".join(f"{count} of {code_span(code)}" for code, count in evaluation.get("known", {}).items())
    rows = [{"language": code_span(code), "minutes": evaluation["minutes"][code], **rate} for code, rate in evaluation["languages"].items()]
    return ModelCard.from_template(
        data, template_path=str(TEMPLATE), **facts, rows=rows, macro=evaluation["macro"], split=evaluation["split"],
        evaluation_name=evaluation_name, known=known, reading=READING[evaluation.get("greedy", True)], base=base, needs=NEEDS, languages=", ".join(map(code_span, config.languages)),
        first_language=json.dumps(config.languages[0]), num_specialists=config.num_specialists, sparsity=config.sparsity,
        gate_bits=len(model.master_asr.artisan_layers) * config.num_specialists, similarity_words=words,
    )  # fmt: skip


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_argument, required=True, help="folder or hub id")
    parser.add_argument("--evaluation", required=True, type=Path, help="JSON of training.evaluate")
    parser.add_argument("--facts", required=True, type=Path, help=f"JSON: {', '.join(FACTS)}")
    parser.add_argument("--out", required=True, type=Path, help="folder of README.md and the picture")
    args = parser.parse_args(argv)
    model = MasterASRForCTC.from_pretrained(args.model)
    evaluation = json.loads(args.evaluation.read_text(encoding="utf-8"))
    if lacking := sorted({"languages", "macro", "minutes", "split"} - set(evaluation)):
        parser.error(f"--evaluation: {args.evaluation} lacks {lacking}. It is to be what training.evaluate wrote.")
    base = model.master_asr.base_fingerprint()
    if not base.startswith(evaluation.get("base", "")):
        parser.error(f"--evaluation: {args.evaluation} has the figures of another model (base {evaluation['base']}; this one is {base[:12]}). Evaluate this one.")
    if evaluation.get("more_text"):
        parser.error(f"--evaluation: {args.evaluation} was made with --more_text of {[*evaluation['more_text']]}, which the model does not hold. Evaluate it without.")
    if foreign := [code for code in evaluation["languages"] if code not in model.languages]:
        parser.error(f"--evaluation: {args.evaluation} has figures of {foreign}, and the model has {model.languages}. Evaluate it without --assembly.")
    greedy = evaluation.get("greedy", True)
    now = digests_of(model, evaluation["languages"], with_text=not greedy)
    if changed := [code for code, digest in evaluation.get("assemblies", now).items() if digest != now[code]]:
        parser.error(f"--evaluation: {args.evaluation} has figures of {changed} that were read with other values or sentences than the model's now. Evaluate it once more.")
    if not greedy and not any(map(model.config.text, evaluation["languages"])):  # also of files that name no assemblies yet
        parser.error(f"--evaluation: {args.evaluation} was read with sentences in mind, of which the model has none. Evaluate it once more.")
    print("".join(f"{line}\n" for line in flattered(evaluation)), end="")
    facts = json.loads(args.facts.read_text(encoding="utf-8"))
    if lacking := sorted(set(FACTS) - set(facts)):
        parser.error(f"--facts: {args.facts} lacks {lacking}.")
    args.out.mkdir(parents=True, exist_ok=True)
    distances = gate_differences(model)
    similarity_figure(distances, model.languages).savefig(args.out / PICTURE, dpi=130)
    source = args.evaluation.resolve()
    name = source.relative_to(ROOT).as_posix() if source.is_relative_to(ROOT) else source.name  # a folder of this machine is nobody else's
    card = render(model, evaluation, facts, name, similarity_words(distances, model.languages))
    card.save(args.out / "README.md")
    print(f"Wrote {args.out / 'README.md'} and {args.out / PICTURE}.")
    print(f"Next: python -m training.push_to_hub --model {shlex.quote(args.model)} --repo OWNER/NAME --card {shlex.quote(str(args.out / 'README.md'))}")


if __name__ == "__main__":
    run(main)
