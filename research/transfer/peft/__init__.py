"""Adapters in the format of Hugging Face's PEFT (0.21): adapter_model.safetensors beside adapter_config.json.

    write('out/', params, config.lora, model='vit', options=options, naming='hf5', base='google/vit-base-patch16-224')
    adapter = read('out/', config.lora, model='vit', options=options, shapes=shapes, base=values)

Both are exact, beside the magnitudes of DoRA, which are PEFT's up to rounding. What one of the two libraries has as one
layer and the other as several goes over too; pieces.py says how.
"""

from research.transfer.peft.reading import Adapter, read
from research.transfer.peft.settings import ARRAYS, SETTINGS
from research.transfer.peft.writing import problems, write

__all__ = ["ARRAYS", "SETTINGS", "Adapter", "problems", "read", "write"]
