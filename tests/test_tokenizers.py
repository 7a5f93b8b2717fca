"""What Transformers' own tokenizer, which a folder of ours gives, reads: one language, or none."""

import subprocess
import sys

import pytest
from conftest import tiny_model, vocab
from transformers import AutoTokenizer

from modeling_master_asr import MasterASRProcessor


def test_transformers_own_tokenizer_of_a_folder_reads_in_the_models_default_language(tmp_path):
    model = tiny_model()
    model.set_language("fr")
    model.save_pretrained(tmp_path)
    processor = MasterASRProcessor.from_model(model)
    processor.add_language("xx", vocab("xy"))
    processor.save_pretrained(tmp_path)
    MasterASRProcessor.from_pretrained(tmp_path).save_pretrained(tmp_path)  # whoever saves it again
    tokenizer, ids = AutoTokenizer.from_pretrained(tmp_path), [3, 4, 0, 4, 6]
    assert tokenizer.target_lang == "fr" and tokenizer.decode(ids) == processor.decode(ids, "fr") == "abbé"


WITHOUT_US = "import sys; from transformers import AutoTokenizer; AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)"


def loads_in_transformers_alone(folder) -> bool:
    """Whether a process that has not imported the package has a tokenizer for a folder; False: it asks for trust_remote_code."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_US, folder], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 or "trust_remote_code=True" in done.stderr, done.stderr[-2000:]
    return done.returncode == 0


def test_transformers_own_tokenizer_reads_no_folder_of_which_nobody_named_a_default(tmp_path):
    """It would write and read every language in the first alphabet: labels and metrics would agree, and the model alone be wrong."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    MasterASRProcessor.from_model(model).save_pretrained(tmp_path)
    processor = MasterASRProcessor.from_pretrained(tmp_path)
    processor.add_language("xx", vocab("xy"))
    processor.save_pretrained(tmp_path)
    MasterASRProcessor.from_pretrained(tmp_path).save_pretrained(tmp_path)  # whoever saves it again
    assert not loads_in_transformers_alone(tmp_path)
    for trust in (True, False):  # the folder's class, and the package's
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=trust)
        assert tokenizer.vocab == processor.vocabs
        with pytest.raises(ValueError, match=r"Which language\? This tokenizer holds the alphabets of"):
            tokenizer("ab")
    for code in processor.languages[1:]:
        processor.remove_language(code)
    processor.save_pretrained(tmp_path / "one")  # which has one to read with
    assert loads_in_transformers_alone(tmp_path / "one")
    processor = MasterASRProcessor.from_pretrained(tmp_path / "one")
    processor.add_language("xx", vocab("xy"))
    processor.save_pretrained(tmp_path / "two")
    assert not loads_in_transformers_alone(tmp_path / "two")
