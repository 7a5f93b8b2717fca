"""Tests of the peers that have no meaning here, each with its reason; and what is known to be open, each with its cause."""

NOT_APPLICABLE: dict[str, dict[str, str]] = {"models": {}, "peft assembly": {}, "peft lora": {}}
OPEN: dict[str, dict[str, str]] = {}
