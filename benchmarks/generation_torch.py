"""transformers' side of benchmarks/generation.py: goes on with prompts when asked to, a JSON line at a time.

    {"how": "greedy", "batch": 8, "prompt": 32, "new": 128}
    -> {"seconds": 2.01, "processor_seconds": 3.98, "parameters": 25174528, "versions": "..."}

`generate` as it comes: its dynamic cache, its own choice of attention.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.turns import serve


def main(threads: int, shape: dict[str, Any], ways: dict[str, dict[str, Any]]) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    declare_torchvision()
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["width"],
        intermediate_size=shape["hidden"],
        num_hidden_layers=shape["depth"],
        num_attention_heads=shape["heads"],
        max_position_embeddings=shape["context"],
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    about = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": f"transformers {transformers.__version__}, torch {torch.__version__}",
    }

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        tokens = torch.randint(1, shape["vocab_size"], (asked["batch"], asked["prompt"]))
        start = time.perf_counter(), time.process_time()
        made = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=asked["new"],
            **ways[asked["how"]],
        )
        seconds = time.perf_counter() - start[0], time.process_time() - start[1]
        assert made.shape[1] == asked["prompt"] + asked["new"]
        return {"seconds": seconds[0], "processor_seconds": seconds[1], **about}

    serve(answer)


def declare_torchvision() -> None:
    """Lets transformers import a torchvision that was made for another torch: it needs no operator of it."""
    try:
        if importlib.util.find_spec("torchvision"):
            importlib.import_module("torchvision")
    except RuntimeError:
        sys.modules.pop("torchvision", None)
        global library
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]))
