"""Tests of the peers that have no meaning here, each with its reason; and what is known to be open, each with its cause."""

NO_GENERATE = "CTC reads all frames at once: there is no generate"
NO_MERGE = "refused in words, see tests/test_peft.py: adapters on masked weights do not merge"
NO_EMBEDDINGS = "audio has no input_ids and no input embeddings"
NO_NESTED = "refused in words: keywords come flat, and an unknown one is an error; tests/test_processing.py has those that are honoured"
LENGTH = "max_length counts samples or frames of the clips where there are any, and nothing is cut: tests/test_processing.py"

NO_LEFT = "refused in words: where padding stands first, frames would be counted from the wrong end; tests/test_outputs.py"
LEFT = ("00_fp16_pad_left_sdpa_kernels", "01_fp16_pad_left", "08_fp32_pad_left_sdpa_kernels", "09_fp32_pad_left", "16_bf16_pad_left_sdpa_kernels", "17_bf16_pad_left")

NOT_APPLICABLE: dict[str, dict[str, str]] = {
    "models": {
        "test_model_get_set_embeddings": NO_EMBEDDINGS,
        "test_training_gradient_checkpointing_use_reentrant_true": "refused in words: it cannot carry a call's language into the recomputation",
        **{f"test_eager_matches_sdpa_inference_{how}": NO_LEFT for how in LEFT},
    },
    "processors": {
        "test_call_arguments_default_none": "the keywords stand in our signature with their defaults, so that an unknown one can be refused",
        "test_call_arguments_not_in_processor_kwargs": "as above: we declare no ProcessingKwargs, the signature says it all",
        "test_flat_kwarg_applied_when_modality_dict_lacks_it": NO_NESTED,
        "test_structured_kwargs_nested_from_dict_2_audio": NO_NESTED,
        "test_overlapping_text_image_kwargs_handling_2_audio": NO_NESTED,
        "test_kwargs_overrides_default_subprocessor_kwargs_2_audio": LENGTH,
        "test_subprocessor_defaults_preserved_by_kwargs_2_audio": LENGTH,
        "test_unstructured_kwargs_2_audio": LENGTH,
        "test_unstructured_kwargs_batched_2_audio": LENGTH,
        "test_replacement_offsets": "asks our second class, UploadMixin, for a method of ProcessorMixin's",
        "test_save_load_pretrained_additional_features": "a token added to an alphabet would have no row in any head",
        "test_subprocessor_defaults_0_text": "texts give label ids, -100 where padded, and no mask",
        "test_subprocessor_defaults_3_audio": "clips keep their true length (Whisper's are not stretched to 30 s), masks are int64 in every family",
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
OPEN: dict[str, dict[str, str]] = {}
