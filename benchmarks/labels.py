"""Which runs stand in which table, in which order, and what they are called there: `{name of the JSON file, or of a series of them: label}`."""

from __future__ import annotations

WHISPER = "Whisper-base as it is, zero-shot, its decoder, timestamps on, greedy"
THOROUGH = "... with five beams, and again at higher temperatures where that fails, as OpenAI's command reads"
LANGUAGES = ["en", "fr", "it", "ru", "cs", "nl"]
STAGE_1 = {  # 3,000 steps
    "stage1_dense_3000_six": "six layers: one shared dense model",
    "stage1_onemask_3000_six": "six layers: one mask for all languages",
    "stage1_master_3000_six": "**six layers: Master-ASR, K = 2** (shipped; here before it was cut to 16 and 8 bits)",
    "stage1_dense_3000": "five layers: one shared dense model",
    "stage1_onemask_3000": "five layers: one mask for all languages",
    "stage1_master_3000": "five layers: Master-ASR, K = 2 (seed 0 was shipped before)",
    "stage1_own_3000": "five layers: a specialist for every language, K = 6, T fixed: what a choice could find",
}
STAGE_1_PARTS = {  # 3,000 steps, --parts mapping head norms --norms_learning_rate 2e-4
    "stage1_densenorms_3000": "one shared dense model, norms and biases of its own for every language",
    "stage1_ownnorms_3000": "a specialist for every language, K = 6, T fixed, and norms and biases of its own",
}
STAGE_1_LONG = {  # 4,500 steps, --spec_masks 3 unless the name says otherwise
    "stage1_dense_4500": "one shared dense model",
    "stage1_onemask_4500": "one mask for all languages",
    "stage1_master_4500": "Master-ASR, K = 2",
    "stage1_norms_4500": "... and norms and biases of its own for every language, rate 2e-4",
    "stage1_own_4500": "a specialist for every language, K = 6, T fixed",
    "stage1_ownffn_4500": "... its masks on the feed-forward layers too",
    "stage1_dense_4500_spec1": "one shared dense model, `--spec_masks 1`",
    "stage1_master_4500_spec1": "Master-ASR, K = 2, `--spec_masks 1`",
}
STAGE_1_CHANGED = {  # 3,000 steps
    "stage1_master_3000": "Master-ASR, K = 2",
    "stage1_master_3000_vtlp": "... 60 % of the augmented clips through other throats (`--vtlp 0.6`)",
}
STAGE_1_SHORT = {  # 1,500 steps
    "stage1_dense": "one shared dense model",
    "stage1_onemask": "one mask for all languages",
    "stage1_master": "Master-ASR, K = 2",
    "stage1_own": "a specialist for every language, K = 6, T fixed",
    "stage1_masterbest": "Master-ASR, K = 2, and preset best for every language (rates 1e-3, 2e-4)",
    "stage1_ownbest": "a specialist for every language, K = 6, T fixed, and preset best (rates 1e-3, 2e-4)",
}
STAGE_1_CHOOSING = {  # 1,500 steps, seed 0
    "stage1_master": "Master-ASR, K = 2, by the paper's rule",
    "stage1_choose_invariant_apart": "M's and T's gradients without the masks' invariances, specialists that start apart",
    "stage1_choose_relative": "T's gradient less what languages want on average",
    "stage1_choose_centred": "T's gradient less its mean over k",
    "stage1_choose_grow": "sparsity that grows from 0 to t over half of the steps",
    "stage1_choose_diverse": "a term that rewards specialists whose masks differ",
    "stage1_choose_clustered": "specialists that start as two clusters of every language's own ones after 500 steps, T at its cluster",
    "stage1_choose_averaged": "W, M, T and heads of the last fifth of the steps, averaged",
    "stage1_own": "K = 6, a specialist for every language, T fixed: what a choice could find",
    "stage1_choose_free": "... with T free, which starts there at +-0.1",
    "stage1_own_t01": "... with t = 0.1 for 0.3",
    "stage1_onemask": "one mask for all languages",
}
STAGE_1_BEFORE = {
    "stage1_dense_1e-4": "6 layers, 600 steps: one shared dense model",
    "stage1_onemask_1e-4": "6 layers, 600 steps: one mask for all languages",
    "stage1_master_1e-4": "6 layers, 600 steps: Master-ASR",
    "stage1_master_3e-4": "6 layers, 600 steps: Master-ASR, rate of W and M 3e-4",
    "stage1_dense_long": "5 layers, 1,500 steps: dense",
    "stage1_onemask_long": "5 layers, 1,500 steps: one mask",
    "stage1_ship": "**5 layers, 1,500 steps: Master-ASR, K = 2** (shipped until then)",
    "stage1_beta2": "... Adam's beta2 0.98 instead of 0.999",
    "stage1_noise1_long": "5 layers, 1,500 steps: Master-ASR, K = 2, noise of M 1.0",
    "stage1_dense_beta2": "beta2 0.98: dense",
    "stage1_onemask_beta2": "beta2 0.98: one mask",
    "stage1_best": "beta2 0.98: Master-ASR, each language with preset best",
}
METHODS = {  # benchmarks/results/SERIES_NAME_seedN.json
    "assembly_paper": "**Master-ASR, preset paper**",
    "assembly_small": "**Master-ASR, preset small**",
    "assembly_small_taught": "**... with a teacher**",
    "assembly_best": "**Master-ASR, preset best**",
    "assembly_best_taught": "**... with a teacher**",
    "assembly_best_refined": "... 1,000 steps more on the same minutes",
    "assembly_best_untranscribed": "**... and on recordings without transcripts**",
    "assembly_best_untranscribedtext": "**... written down, and read, with 200,000 letters of fortunes in mind**",
    "head": "head alone, on the dense model",
    "lora": "PEFT LoRA r = 8 on attention alone, on the dense model",
    "lora_all": "PEFT LoRA r = 8 on attention and feed-forward, on the dense model",
    "lora_all_taught": "... with a teacher, at half of the rate",
    "lora_all_untranscribedtext": "... and on recordings without transcripts, written down, and read, with 200,000 letters of fortunes in mind",
    "bottleneck": "bottleneck adapters (MMS), on the dense model",
    "mask": "mask tuning (S3-Router), on the dense model",
    "full": "full tuning of the dense model",
    "full_taught": "... with a teacher",
}
TRIED_IN_STAGE_2 = {
    "stage2_es_paper": "mapping + head",
    "stage2_es_paper_accumulated": "... T's gradient accumulated over its beta steps",
    "stage2_es_paper_head": "... rate of the head 5e-3 instead of 2e-3",
    "stage2_es_specialist": "mapping + head + specialist",
    "stage2_es_delta": "mapping + head + delta",
    "stage2_es_delta_accumulated": "... T's gradient accumulated over its beta steps",
}
TRIED_3000 = {  # on stage 1 of 3,000 steps
    "es_assembly_best_seed0": "preset best",
    "tried_es_best_views_seed0": "... two views of each clip, heard alike (CR-CTC, weight 0.2), in a batch of as many seconds (commit `582a448`)",
    "tried_es_best_ft_seed0": "... the same losses, read as since commit `c2c03b2`",
    "es2000_assembly_best_seed0": "... 2,000 steps",
    "tried_es_best_learnt_seed0": "... started from the nearest of six languages that own preset best (Czech), the model's given it afterwards",
    "es_mask_seed0": "mask tuning: masks of its own on the attention layers of the dense model, t = 0.1",
    "tried_es_mask_best_seed0": "... and beside them what preset best owns (2.2 MB, masks at 1 bit, the rest in half precision)",
}
TRIED = {
    "es1500_assembly_best_seed0": "preset best: rank 16, T's rate falls, T rests for the last 30 %",
    "tried_es_best_r8": "... rank 8, T's rate constant: the preset before",
    "tried_es_best_rates": "... ... and rates of norms and deltas 3e-3",
    "tried_es_best_dense": "rank 8 on the dense model: nothing is masked",
    "es1500_assembly_small_seed0": "preset small: rank 1, rate of the delta 3e-3",
    "tried_es_small_1e-3": "... rate of the delta 1e-3",
    "es1500_lora_all_seed0": "LoRA r = 8 on all layers of the dense model, rate 1e-3",
    "tried_es_lora_all_3e-3": "... rate 3e-3",
}
RATES = {  # NAME_seedN.json
    "es_assembly_best": "preset best: rate of the delta 2e-3, of norms 2e-4",
    "tried_es_best_2e-3": "... of the delta 2e-3, of norms 2e-3",
    "tried_es_best_norms": "... of the delta 1e-3, of norms 2e-4",
    "tried_es_best_4e-3": "... of the delta 4e-3, of norms 2e-4",
    "tried_es_best_1e-3": "... of the delta 1e-3, of norms 2e-3: the default before",
    "tried_es_best_dense": "... the same on the dense model",
    "tried_es_best_singular": "preset best, down starts at the weights' largest singular vectors (commit `6d804ca`)",
    "tried_es_best_ends": "preset best, rank 22 in the first and the last layer, 12 between (commit `6d804ca`)",
    "tried_es_best_joined": "preset best, half of the batches with their clips two in one (commit `94f382d`)",
    "tried_es_best_vtlp": "preset best, 60 % of the augmented clips through other throats (`--vtlp 0.6`)",
    "tried_es_best_rank4": "preset best, rank 4 (0.3 MB), rate of the delta 2e-3",
    "tried_es_best_rank32": "preset best, rank 32 (1.6 MB), rate of the delta 2e-3",
    "tried_es_best_rank32slow": "... and of the delta 1e-3",
    "tried_es_best_plus": "preset best, up eight times as fast as down (LoRA+, arXiv 2402.12354; commit `151dcd2`)",
    "tried_es_best_intermediate": "preset best, three tenths of the loss from the middle layer (arXiv 2102.03216; commit `151dcd2`)",
    "es6_assembly_best": "preset best, on six layers: the shipped model",
    "tried_es6_best_scales": "... and a factor for every output (`scales`, 1.0 MB)",
    "tried_es6_full_first": "... all weights first for 600 steps, their change cut to rank 16, which trains on for 400 (commit 58d8ef9)",
    "tried_es6_distilled": "... taught, beside CTC, by what those 600 steps of all weights gave, uncut (commit 402a05d)",
    "es6uncut_assembly_best": "... on the same before it was cut to 41 MB",
    "es6_assembly_small": "preset small, on six layers: the shipped model",
    "tried_es6_small_4e-3": "... rate of the delta 4e-3 for 3e-3",
    "es6uncut_assembly_small": "... at 3e-3, on the same before it was cut",
    "es6_assembly_paper": "preset paper, on six layers: the shipped model",
    "tried_es6_paper_row": "... with the row that it starts from, nothing chosen (rate of T 1e-12)",
    "es_full": "full tuning of the dense model: rate 1e-4",
    "tried_es_full_2e-4": "... 2e-4",
    "tried_es6_lora_all_1e-3": "LoRA r = 8 on all layers of the dense model of six layers: rate 1e-3",
    "es6_lora_all": "... 2e-3",
    "es6_lora_all_taught": "... with a teacher: rate 1e-3",
    "tried_es6_lora_all_taught_2e-3": "... ... 2e-3",
}
HALVED = {  # method -> half of its rate, the rate it was given, twice as much: tried_es6_METHOD_RATE_seed0.json (of assemblies their preset), es6_METHOD_seed0.json
    "assembly_small": ("1.5e-3", "3e-3", "6e-3"), "assembly_best": ("1e-3", "2e-3", "4e-3"),
    "head": ("2.5e-3", "5e-3", "1e-2"), "lora": ("5e-4", "1e-3", "2e-3"),
    "lora_all": ("1e-3", "2e-3", "4e-3"), "bottleneck": ("5e-4", "1e-3", "2e-3"), "mask": ("5e-4", "1e-3", "2e-3"), "full": ("5e-5", "1e-4", "2e-4"),
}  # fmt: skip
TRIED_LONG = {
    "tried_es_best_half": "preset best, in half precision; T never rests, nothing is averaged",
    "tried_es_best_rest": "... in 8 bits; T's rate decays and rests for the last tenth, the last fifth of the steps averaged",
    "tried_es_best_spec3": "... three times the SpecAugment (the default now)",
    "tried_es_best_start": "... on the model whose languages own preset best, started from the nearest of them",
    "tried_es_small_rest": "preset small, T at rest and averaged as above",
    "tried_es_small_spec3": "... three times the SpecAugment",
}
# What is compared with what, seed by seed: the file of a model is stage1_MODEL and one of these, or stage1_LEFT-OUT_MODEL.
PAIRS = {"Master-ASR less dense": ("master", "dense"), "Master-ASR less one mask": ("master", "onemask"), "a specialist each less one mask": ("own", "onemask"), "a specialist each less dense": ("own", "dense")}
BUDGETS = {
    "1,500": "{}", "1,500, seed 1": "{}_seed1", "3,000": "{}_3000", "3,000, seed 1": "{}_3000_seed1", "4,500": "{}_4500", "4,500, seed 1": "{}_4500_seed1",
    "4,500, fewer masks of SpecAugment": "{}_4500_spec1", "3,000, without cs, `--spec_masks 3`": "nocs_{}", "3,000, without ru, `--spec_masks 3`": "noru_{}",
    "3,000, six layers": "{}_3000_six", "3,000, six layers, without cs": "nocs6_{}", "3,000, six layers, without ru": "noru6_{}",
    "3,000, six layers, without it": "noit6_{}",
}  # fmt: skip
SHIPPED = {  # name -> (file of test, file of validation), or the file of a run that read both
    "the shipped model, greedy": ("evaluate_shipped", "evaluate_shipped_validation"),
    "**the shipped model, each language with the sentences it trained on in mind**": ("evaluate_text", "evaluate_text_validation"),
    "one shared dense model, with the same sentences": "stage1_dense_3000_six",
}
OTHER_VOICES = {  # of the same recipe on a corpus without them
    "the shipped model, greedy": "voices_unheard_others",
    "**the shipped model, each language with the sentences it trained on in mind**": "voices_unheardtext_others",
    WHISPER: "zero_shot_voices",
    THOROUGH: "zero_shot_voices_thorough",
}
SHIPPED_BEFORE = {
    "five layers, greedy": ("evaluate_five", "evaluate_five_validation"),
    "five layers, each language with the sentences it trained on in mind": ("evaluate_five_text", "evaluate_five_text_validation"),
    "five layers, one shared dense model, with the same sentences": ("evaluate_five_text_dense", "evaluate_five_text_dense_validation"),
}
SENTENCES = {
    "none": "none: greedy", "half of its own": "half of its own", "its own": "its own: the transcripts of the minutes it trained on",
    "of all training clips": "of all clips of the training split, heard or not", "of another subject": "of another subject (fortunes), 200,000 letters",
    "both": "its own and those",
}  # fmt: skip
FEW = {"best_1min": "preset best, 1 minute, 500 steps", "best_3min": "preset best, 3 minutes, 500 steps", "best": "preset best, 10 minutes, 1,000 steps", "small": "preset small, 10 minutes, 1,000 steps"}
# A series of runs: what the table says of it, its new language, and the file with the time of a step on as many layers.
# "es1500" is on stage 1 of 1,500 steps, as all that follows from it; "estext" are those of "es" that were read with sentences too.
SERIES = {
    "es6": ("es, 10 minutes, 1,000 steps", "es", "steps"),
    "es": ("es, 10 minutes, 1,000 steps, five layers", "es", "steps_five"),
    "estext": ("es, 10 minutes, 1,000 steps, five layers", "es", "steps_five"),
    "es2000": ("es, 10 minutes, 2,000 steps", "es", "steps_five"),
    "es1500": ("es, 10 minutes, 1,000 steps, on stage 1 of 1,500 steps", "es", "steps_five"),
    "es4500": ("es, 10 minutes, 1,000 steps, on stage 1 of 4,500 steps", "es", "steps_five"),
    "cs": ("cs, 10 minutes, 1,000 steps", "cs", "steps_five"),
    "cs6": ("cs, 10 minutes, 1,000 steps, six layers", "cs", "steps"),
    "ru": ("ru, 10 minutes, 1,000 steps", "ru", "steps_five"),
    "ru6": ("ru, 10 minutes, 1,000 steps, six layers", "ru", "steps"),
    "it6": ("it, 10 minutes, 1,000 steps, six layers", "it", "steps"),
}
ACROSS = {"es6": "es, six layers", "es": "es, five layers", "es4500": "es, five layers, 4,500 steps of stage 1", "ru": "ru, five layers", "cs": "cs, five layers", "cs6": "cs, six layers", "ru6": "ru, six layers", "it6": "it, six layers"}
# A name in serving.json and gpu.json: what it is called since.
REQUESTS = {"preset best, weights made for every request": "preset best, weights assembled for every request"}
MINUTES = (1, 3, 10)
CURVES = {"assembly_best": "Master-ASR, preset best", "lora_all": "LoRA r = 8 on all layers of the dense model", "full": "full tuning of the dense model"}
VOICES = {"plain": "SpecAugment and speed, as everywhere here", "varied": "half of the clips through other throats (VTLP, 0.82 to 1.22), some of those over a narrow line"}
MORE_VOICES = {"one": "one: the small fish", "two": "two: the big fish too", "many": "13 in cs, two in nl", "altered": "one, and a copy of each clip with another pitch, room and noise (60 minutes each, half of them copies)"}
MORE_STEPS = {
    "one": "one character, 25 minutes each, 600 steps, greedy",
    "many2000": "13 in cs, two in nl, 81 and 84 minutes, 2,000 steps, greedy",
    "many2000text": "... with the sentences of these minutes in mind",
    "many2000fortunes": "... and, in cs, 200,000 letters of fortunes",
    "many4000": "the same minutes, 4,000 steps, greedy",
    "many4000text": "... with the sentences of these minutes in mind",
    "vtlp4000": "the same, 4,000 steps, 60 % of the augmented clips through other throats (`--vtlp 0.6`), greedy",
    "vtlp4000text": "... with the sentences of these minutes in mind",
    "vtlp4000fortunes": "... and, in cs, fortunes, 200,000 letters in all",
    "vtlp4000fortunes900": "... 900,000 letters in all",
    "six5000": "the same on all six layers of the encoder, 5,000 steps, rate of W 1e-4, twice the SpecAugment, greedy",
    "six5000text": "... with the sentences of these minutes in mind",
    "six5000fortunes900": "... and, in cs, fortunes, 900,000 letters in all",
    "synthetic": "13 in cs, two in nl, 2,000 steps (as the second line), and an hour of sentences of fortunes in four synthetic voices, greedy",
    "synthetictext": "... with the sentences of all these minutes in mind",
    "synthetic6000": "the same hour of synthetic voices on six layers, 6,000 steps, as the lines of 5,000, greedy",
    "synthetic6000text": "... with the sentences of all these minutes in mind",
    "synthetic6000fortunes900": "... and, in cs, fortunes, 900,000 letters in all",
}
