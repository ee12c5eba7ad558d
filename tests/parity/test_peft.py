"""Adapters in PEFT's format, both ways: PEFT computes with ours what we do, and we with PEFT's what it does."""

import importlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.config import defaults
from research.task import Task
from research.transfer import lora, peft
from research.transfer.load import flat, load

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

CLOSE = 1e-4  # logits of size 1 after two blocks of float32, summed in other orders
RANK = 3
VOCABULARY, LENGTH = 19, 7
TEXT = dict(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
KINDS = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
}


@pytest.fixture(scope="module", autouse=True)
def library(torchvision_imports):
    """PEFT and transformers import torchvision, which may need help first."""
    global theirs, transformers
    theirs = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")


class Case(NamedTuple):
    """A model of theirs and the same of ours."""

    make: Any  # () -> theirs
    model: str
    options: dict[str, Any]
    given: dict[str, Any]  # what the task gives to ours
    naming: str  # of the base's file, and of its modules
    layers: tuple[str, ...]  # of ours, that get adapters
    targets: list[str] | str  # theirs
    train: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()  # theirs
    task_type: str = ""


def vit():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8,
        patch_size=4, num_labels=3, layer_norm_eps=1e-6,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def bert():
    config = transformers.BertConfig(
        **TEXT, intermediate_size=24, max_position_embeddings=10, num_labels=3
    )
    return transformers.BertForSequenceClassification(config)


def roberta():
    config = transformers.RobertaConfig(
        **TEXT, intermediate_size=24, max_position_embeddings=12, num_labels=3, type_vocab_size=1
    )
    return transformers.RobertaForSequenceClassification(config)


def distilbert():
    config = transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=10, num_labels=3
    )  # fmt: skip
    return transformers.DistilBertForSequenceClassification(config)


def scored():
    config = transformers.LlamaConfig(
        **TEXT, intermediate_size=24, max_position_embeddings=10, num_key_value_heads=1, rms_norm_eps=1e-6,
        num_labels=3, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForSequenceClassification(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=10, bos_token_id=0, eos_token_id=0
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama():
    config = transformers.LlamaConfig(
        **TEXT, intermediate_size=24, max_position_embeddings=10, num_key_value_heads=1, rms_norm_eps=1e-6
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


ENCODER = dict(
    width=16, depth=2, heads=2, hidden=24, causal=False, prenorm=False, final_norm=False, embed_norm=True,
    norm_epsilon=1e-12, pool="first", pooler="tanh",
)  # fmt: skip
ROBERTA = ENCODER | dict(context=12, types=1, position_offset=2)
LLAMA = dict(
    width=16, depth=2, heads=2, kv_heads=1, hidden=24, norm="rms", norm_epsilon=1e-6, position="rotary",
    activation="silu", gated=True, qkv_bias=False, out_bias=False, mlp_bias=False, tied=False,
)  # fmt: skip
CLASSES = dict(vocab_size=VOCABULARY, outputs=3, head="classify")
TOKENS = dict(vocab_size=VOCABULARY, outputs=0, head="lm")
CASES = {
    "vit": Case(
        vit, "vit", dict(patch_size=4, width=16, depth=2, heads=2, mlp_ratio=1.5), dict(num_classes=3), "hf5",
        (r"patch_embed", r"block_\d+/(proj|fc1|fc2)$"), ["projection", "o_proj", "fc1", "fc2"],
        (r"^head/", r"^norm/"), ("classifier", "vit.layernorm"),
    ),
    "bert": Case(
        bert, "transformer", ENCODER | dict(context=10, types=2), CLASSES, "bert",
        (r"embed$", r"position$", r"block_\d+/attention/(query|value)$", r"block_\d+/mlp/.*"),
        r".*(word_embeddings|position_embeddings|query|value|intermediate\.dense|layer\.\d\.output\.dense)",
        (r"^head/",), ("classifier",), "SEQ_CLS",
    ),
    "roberta": Case(
        roberta, "transformer", ROBERTA, CLASSES, "roberta", (r"block_\d+/attention/.*",),
        r".*attention\.(self\.(query|key|value)|output\.dense)", (r"^(pooler|head)/",), ("classifier",), "SEQ_CLS",
    ),
    "distilbert": Case(
        distilbert, "transformer", ENCODER | dict(context=10, pooler="relu"), CLASSES, "distilbert",
        (r"block_\d+/attention/(query|value)$", r"block_\d+/mlp/.*"), ["q_lin", "v_lin", "lin1", "lin2"],
        (r"^(pooler|head)/",), ("classifier",), "SEQ_CLS",
    ),
    "scored": Case(
        scored, "transformer", LLAMA | dict(pool="last", head_bias=False), CLASSES, "llama",
        (r"block_\d+/attention/(query|value)$",), ["q_proj", "v_proj"], (r"^head/",), ("score",), "SEQ_CLS",
    ),
    "gpt2": Case(
        gpt2, "transformer", dict(width=16, depth=2, heads=2, hidden=64, context=10, activation="gelu_tanh"),
        TOKENS, "gpt2", (r"position$", r"block_\d+/(attention|mlp)/.*"), ["wpe", "c_attn", "c_proj", "c_fc"],
        task_type="CAUSAL_LM",
    ),
    "llama": Case(
        llama, "transformer", LLAMA, TOKENS, "llama", (r"embed$", r"head$", r"block_1/.*"),
        r"model\.embed_tokens|lm_head|model\.layers\.1\.(self_attn|mlp)\..*_proj",
        (r"^norm/",), ("model.norm",), "CAUSAL_LM",
    ),
}  # fmt: skip


class Pair:
    """One model in both libraries, with the same random values."""

    def __init__(self, case):
        torch.manual_seed(0)
        self.case, self.theirs = case, case.make().eval()
        with torch.no_grad():
            for p in self.theirs.parameters():  # zeros and ones would hide mistakes
                p.add_(0.2 * torch.randn_like(p))
        self.module = importlib.import_module(f"research.models.{case.model}").Model(
            dtype=jnp.float32, axis_name=None, **case.given, **case.options
        )
        generator = np.random.default_rng(0)
        if case.model == "vit":
            self.x = generator.standard_normal((4, 8, 8, 3), np.float32)
            self.x_theirs = torch.from_numpy(self.x.transpose(0, 3, 1, 2).copy())
        else:
            self.x = generator.integers(2, VOCABULARY, (4, LENGTH)).astype(np.int32)
            self.x_theirs = torch.from_numpy(self.x).long()
        names = ("input_ids",) if case.model != "vit" else ("pixel_values",)
        self.input = names[0]
        arrays = {
            name: p.numpy() for name, p in self.theirs.state_dict().items() if "position_ids" not in name
        }  # fmt: skip
        shapes = jax.eval_shape(self.task(None).init, jax.random.key(0))["params"]
        how = dict(model=case.model, options=case.options, naming=case.naming)
        self.base = load(arrays, params=shapes, model_state={}, **how).params
        self.how = dict(model=case.model, options=case.options)

    def task(self, section):
        def apply(params, state, batch):
            return self.module.apply({"params": params}, batch, train=False)

        plain = Task(
            **{**dict.fromkeys(Task._fields), **Task._field_defaults}
            | dict.fromkeys(("loss", "intermediates", "features"), apply)
            | dict(
                init=lambda key: self.module.init(key, jnp.asarray(self.x), train=False),
                predict=apply,
            )
        )
        return plain if section is None else lora.adapt(plain, section)

    def section(self, **how):
        section = defaults().lora
        given = dict(rank=RANK, alpha=5.0, layers=self.case.layers, train=self.case.train)
        section.update(given | how)
        return section

    def shapes(self, section):
        made = jax.eval_shape(self.task(section).init, jax.random.key(0))["params"]
        return {path: leaf.shape for path, leaf in flat(made).items()}

    def logits(self, params, section=None):
        return np.asarray(jax.jit(self.task(section).predict)(params, {}, self.x))

    def logits_of(self, model):
        with torch.no_grad():
            return model(**{self.input: self.x_theirs}).logits.numpy()

    def peft_config(self, section, **how):
        return theirs.LoraConfig(
            **dict(
                r=section.rank, lora_alpha=section.alpha, use_rslora=section.rslora, use_dora=section.dora,
                target_modules=self.case.targets, modules_to_save=list(self.case.saved) or None,
                task_type=self.case.task_type or None,
            ) | how
        )  # fmt: skip

    def adapted_theirs(self, folder, section, **how):
        """PEFT's adapters on a base of its own, as if trained, saved in a folder."""
        base = self.case.make().eval()
        base.load_state_dict(self.theirs.state_dict())
        model = theirs.get_peft_model(base, self.peft_config(section, **how)).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    noise = 0.2 * torch.randn_like(p)
                    p.copy_(p * (1 + noise) if "magnitude" in name else p + noise)
        model.save_pretrained(folder)
        return model


PAIRS: dict[str, Pair] = {}


@pytest.fixture(params=CASES)
def pair(request):
    if request.param not in PAIRS:
        PAIRS[request.param] = Pair(CASES[request.param])
    return PAIRS[request.param]


def tree(leaves):
    nested: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        inside = nested
        for parent in parents:
            inside = inside.setdefault(parent, {})
        inside[name] = leaf
    return nested


@pytest.mark.parametrize("kind", KINDS)
def test_we_compute_what_peft_does_with_its_adapters(pair, kind, tmp_path):
    section = pair.section(**KINDS[kind])
    model = pair.adapted_theirs(tmp_path, section)
    want = pair.logits_of(model)
    assert np.abs(want - pair.logits_of(pair.theirs)).max() > 0.1  # the adapters do something
    base = flat(pair.base)
    found = peft.read(tmp_path, section, shapes=pair.shapes(section), base=base, **pair.how)
    assert found.naming == pair.case.naming
    params = tree(base | found.values)
    assert flat(params).keys() == pair.shapes(section).keys()
    np.testing.assert_allclose(pair.logits(params, section), want, atol=CLOSE)
    merged = pair.logits_of(model.merge_and_unload())
    np.testing.assert_allclose(pair.logits(lora.merge(params, section)), merged, atol=CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_computes_what_we_do_with_our_adapters(pair, kind, tmp_path, recwarn):
    section = pair.section(**KINDS[kind])
    generator = np.random.default_rng(2)
    leaves = flat(pair.base)
    for path, shape in pair.shapes(section).items():
        noise = 0.2 * generator.standard_normal(shape).astype(np.float32)
        if lora.is_adapter(path):
            leaves[path] = 1 + noise if path.endswith("lora_m") else noise
        elif any(re.match(pattern, path) for pattern in section.train):
            leaves[path] = leaves[path] + noise
    params = tree(leaves)
    want = pair.logits(params, section)
    assert np.abs(want - pair.logits(pair.base)).max() > 0.1
    naming, task_type = pair.case.naming, pair.case.task_type
    peft.write(tmp_path, params, section, naming=naming, task_type=task_type, **pair.how)
    base = pair.case.make().eval()
    base.load_state_dict(pair.theirs.state_dict())
    model = theirs.PeftModel.from_pretrained(base, tmp_path).eval()
    assert not [w for w in recwarn if re.search("missing|unexpected", str(w.message).lower())]
    np.testing.assert_allclose(pair.logits_of(model), want, atol=CLOSE)
    merged = pair.logits_of(model.merge_and_unload())
    np.testing.assert_allclose(pair.logits(lora.merge(params, section)), merged, atol=CLOSE)


def test_queries_and_values_that_are_one_layer_here_take_twice_the_rank(tmp_path):
    """PEFT's usual targets in a ViT, each with factors of its own; here both are in qkv."""
    pair = PAIRS.setdefault("vit", Pair(CASES["vit"]))
    targets = pair.section(layers=(r"block_\d+/(qkv|fc1)$",), dora=True)
    model = pair.adapted_theirs(tmp_path, targets, target_modules=["q_proj", "v_proj", "fc1"])
    section = pair.section(layers=(r"block_\d+/(qkv|fc1)$",), dora=True, rank=6, alpha=10.0)
    base = flat(pair.base)
    found = peft.read(tmp_path, section, shapes=pair.shapes(section), base=base, **pair.how)
    params = tree(base | found.values)
    np.testing.assert_allclose(pair.logits(params, section), pair.logits_of(model), atol=CLOSE)
    section = pair.section(layers=targets.layers, dora=True)
    with pytest.raises(Exception, match="config.lora.rank=3: .* needs 6"):
        peft.read(tmp_path, section, shapes=pair.shapes(section), base=base, **pair.how)


def test_ranks_and_scales_may_differ_by_module(tmp_path):
    pair = PAIRS.setdefault("llama", Pair(CASES["llama"]))
    how = dict(rank_pattern={"q_proj": 2, "down_proj": 5}, alpha_pattern={"v_proj": 9})
    model = pair.adapted_theirs(tmp_path, pair.section(rslora=True), **how)
    # The scale of what has the common rank stays: alpha / sqrt(3) = alpha' / sqrt(5).
    section = pair.section(rslora=True, rank=5, alpha=5.0 * (5 / 3) ** 0.5)
    base = flat(pair.base)
    found = peft.read(tmp_path, section, shapes=pair.shapes(section), base=base, **pair.how)
    params = tree(base | found.values)
    np.testing.assert_allclose(pair.logits(params, section), pair.logits_of(model), atol=CLOSE)


def test_what_is_fresh_and_frozen_goes_along(tmp_path):
    """A base without the layer before the head: PEFT computes with ours only if the adapter brings it."""
    pair = PAIRS.setdefault("distilbert", Pair(CASES["distilbert"]))
    section = pair.section(train=(r"^head/",))
    generator = np.random.default_rng(2)
    leaves = flat(pair.base)
    for path, shape in pair.shapes(section).items():
        if lora.is_adapter(path) or path.startswith(("pooler/", "head/")):
            leaves[path] = 0.2 * generator.standard_normal(shape).astype(np.float32)
    fresh = [path for path in leaves if path.startswith("pooler/")]
    how = dict(naming="distilbert", task_type="SEQ_CLS", **pair.how)
    peft.write(tmp_path, tree(leaves), section, beside=fresh, **how)
    base = pair.case.make().eval()
    base.load_state_dict(pair.theirs.state_dict())
    model = theirs.PeftModel.from_pretrained(base, tmp_path).eval()
    want = pair.logits(tree(leaves), section)
    np.testing.assert_allclose(pair.logits_of(model), want, atol=CLOSE)
