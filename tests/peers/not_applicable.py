"""Tests of the peers that have no meaning here, each with its reason; and what is known to be open, each with its cause."""

NO_GENERATE = "CTC reads all frames at once: there is no generate"
NO_MERGE = "refused in words, see tests/test_peft.py: adapters on masked weights do not merge"
NO_EMBEDDINGS = "audio has no input_ids and no input embeddings"

NOT_APPLICABLE: dict[str, dict[str, str]] = {
    "models": {
        "test_model_get_set_embeddings": NO_EMBEDDINGS,
        "test_training_gradient_checkpointing_use_reentrant_true": "refused in words: it cannot carry a call's language into the recomputation",
    },
    "peft": {
        "_test_generate": NO_GENERATE,
        "_test_generate_half_prec": NO_GENERATE,
        "_test_generate_pos_args": NO_GENERATE,
        "_test_generate_with_mixed_adapter_batches_and_beam_search": NO_GENERATE,
        "_test_disable_adapter": NO_GENERATE + "; tests/test_peft.py compares logits",
        "_test_merge_layers": NO_MERGE,
        "_test_merge_layers_fp16": NO_MERGE,
        "_test_merge_layers_is_idempotent": NO_MERGE,
        "_test_merge_layers_multi": NO_MERGE,
        "_test_merge_layers_nan": NO_MERGE,
        "_test_safe_merge": NO_MERGE,
        "_test_mixed_adapter_batches": NO_EMBEDDINGS + "; tests/test_peft.py mixes adapters",
        "_test_passing_input_embeds_works": NO_EMBEDDINGS,
        "_test_prepare_for_training": NO_EMBEDDINGS,
    },
}
OPEN: dict[str, dict[str, str]] = {
    "models": {
        "test_bc_torch_dtype": "from_pretrained loads float32 where torch_dtype= asks for another (modeling)",
        "test_model_outputs_equivalence": "return_dict=False gives an AttributeError (modeling)",
    },
}
