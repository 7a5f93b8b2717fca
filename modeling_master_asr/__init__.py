"""Master-ASR for the Hugging Face ecosystem: one speech encoder, a few shared specialists, one small assembly a language."""

from transformers import AutoConfig, AutoModel, AutoModelForCTC, AutoProcessor, AutoTokenizer

from .assembly_master_asr import LanguageAssembly
from .configuration_master_asr import MasterASRConfig
from .modeling_master_asr import MasterASRForCTC, MasterASRModel, MasterASRPreTrainedModel
from .pipeline_master_asr import MasterASRPipeline
from .processing_master_asr import MasterASRProcessor, MasterASRTokenizer
from .version import __version__

__all__ = [
    "LanguageAssembly",
    "MasterASRConfig",
    "MasterASRForCTC",
    "MasterASRModel",
    "MasterASRPipeline",
    "MasterASRPreTrainedModel",
    "MasterASRProcessor",
    "__version__",
]

AutoConfig.register("master_asr", MasterASRConfig, exist_ok=True)
AutoModel.register(MasterASRConfig, MasterASRModel, exist_ok=True)
AutoModelForCTC.register(MasterASRConfig, MasterASRForCTC, exist_ok=True)
AutoProcessor.register(MasterASRConfig, MasterASRProcessor, exist_ok=True)
AutoTokenizer.register(MasterASRConfig, MasterASRTokenizer, exist_ok=True)

try:
    from . import peft_assembly  # noqa: F401  # PEFT finds the method "ASSEMBLY" where PEFT is installed
except ImportError:
    pass
