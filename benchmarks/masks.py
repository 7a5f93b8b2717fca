"""The speed of masks and assembled weights, each as a ratio of processor times in one run: 1024 x 1024 float32, one thread.

    python -m benchmarks.masks --out benchmarks/results/masks.json
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import WhisperConfig

from benchmarks import timing
from modeling_master_asr import MasterASRConfig, MasterASRForCTC
from modeling_master_asr.artisan_master_asr import mask_weight, open_gates, select_mask, specialist_scores
from training.loop.record import facts_of_run, write_json

SIZE, SPARSITY, K = 1024, 0.3, 8


def interleaved(one, other, rounds: int = 30) -> dict:
    """Medians in ms of two functions timed in turn, and the median of their pairwise ratios.

    In processor time: on a busy machine the longer function waits more often, which would flatter the shorter one.
    """
    times = timing.in_turn({"one": one, "other": other}, rounds, warm_up=3, clock=time.process_time)
    ms, reference_ms = (round(1000 * statistics.median(of), 3) for of in times.values())
    return {"ms": ms, "reference_ms": reference_ms, "ratio": round(timing.ratio(times["one"], times["other"]), 3)}


def mask_selection() -> dict:
    """Exact selection over the bare comparison S > r."""
    scores = torch.randn(SIZE, SIZE)
    threshold = float(scores.flatten().kthvalue(int(SPARSITY * scores.numel())).values)
    return interleaved(lambda: select_mask(scores, SPARSITY), lambda: scores > threshold)


@torch.no_grad()
def assembled_forward() -> dict:
    """An encoder with an assembled language over the same encoder's plain weights."""
    config = WhisperConfig(d_model=SIZE, encoder_layers=4, encoder_attention_heads=16, encoder_ffn_dim=4 * SIZE, decoder_layers=1)
    vocab = {"[PAD]": 0, "[UNK]": 1, "|": 2, "a": 3}
    model = MasterASRForCTC(MasterASRConfig(
        backbone_config=config, assemblies={"en": {"vocab": vocab}},
    )).eval()  # fmt: skip
    features = torch.randn(1, 80, 400)
    return interleaved(
        lambda: model.master_asr(input_features=features, language="en"), lambda: model.master_asr.backbone(features)
    )


@torch.no_grad()
def rule(rounds: int = 100) -> dict:
    """What of a forward goes into looking whether anything moved, with one second of audio, the least favourable case.

    Taken inside the forward: alone between two of them, the same call would pay for bringing the interpreter back into the caches.
    """
    model = MasterASRForCTC.from_pretrained("./checkpoints/master-asr-whisper-base").eval()
    features = torch.randn(1, 80, 100)
    look, spent_s = model.master_asr.assembled, []

    def timed(*args):
        start = time.process_time()
        assembled = look(*args)
        spent_s.append(time.process_time() - start)
        return assembled

    model.master_asr.assembled = timed
    shares, whole_s = [], []
    for _ in range(rounds):
        start = time.process_time()
        model(input_features=features, language="en")
        whole_s.append(time.process_time() - start)
        shares.append(spent_s[-1] / whole_s[-1])
    ms = [round(1000 * statistics.median(times), 3) for times in (spent_s, whole_s)]
    return {"ms": ms[0], "reference_ms": ms[1], "ratio": round(statistics.median(shares), 4)}


def fingerprint(rounds: int = 5) -> dict:
    """The first look of `load_assembly` at a model whether it is the assembly's base, over loading that model; and every later look."""
    first_ms, again_ms, load_ms = [], [], []
    for _ in range(rounds):
        start = time.process_time()
        model = MasterASRForCTC.from_pretrained("./checkpoints/master-asr-whisper-base").eval()
        loaded = time.process_time()
        model.master_asr.base_fingerprint()
        hashed = time.process_time()
        model.master_asr.base_fingerprint()
        for times, seconds in ((load_ms, loaded - start), (first_ms, hashed - loaded), (again_ms, time.process_time() - hashed)):
            times.append(1000 * seconds)
    first, again, load = (round(statistics.median(times), 2) for times in (first_ms, again_ms, load_ms))
    return {"ms": first, "again_ms": again, "reference_ms": load, "ratio": round(first / load, 3)}


def layer_gradient() -> dict:
    """Backward of one Artisan layer, K = 8, over the textbook expression with its K-sized temporaries."""
    weight = torch.randn(SIZE, SIZE, requires_grad=True)
    specialists, row = torch.randn(K, SIZE, SIZE, requires_grad=True), torch.tensor([1.0, -1.0] * (K // 2), requires_grad=True)
    gates = open_gates(row)
    mask = select_mask(specialist_scores(specialists.detach(), gates), SPARSITY)
    grad = torch.randn(SIZE, SIZE)

    def ours():
        weight.grad = specialists.grad = row.grad = None
        mask_weight(weight, specialists, row, mask, gates).backward(grad)

    def textbook():
        weight.grad = specialists.grad = row.grad = None
        hard = torch.tensor(gates, dtype=torch.float32)
        soft = torch.sigmoid(row)
        scores = ((hard + soft - soft.detach())[:, None, None] * specialists).sum(0)
        (weight * (mask + scores - scores.detach())).backward(grad)

    return interleaved(ours, textbook, rounds=10)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result = {**facts_of_run()}
    for measure in (mask_selection, assembled_forward, layer_gradient, rule, fingerprint):
        result[measure.__name__] = measure()
        print(measure.__name__, result[measure.__name__])
    write_json(args.out, result)


if __name__ == "__main__":
    main()
