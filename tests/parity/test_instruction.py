"""A small random Llama of transformers learns a made-up rule by a user's commands, and answers there as it does here.

The rule: to a word say the letters that come after its own, as 'bbg' to 'aaf'. Words of the test are never trained on.
"""

import json
import random

import pytest

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

pytestmark = pytest.mark.parity

LETTERS = "abcdefghijklmnopqrst"
ROLES = ("<|user|>", "<|assistant|>", "<|system|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
FLAGS = (
    "--config.data.split_column=split",
    "--config.data.validation_fraction=0.05",
    "--config.data.text.max_length=64",
    "--config.train.batch_size=16",
    "--config.train.duration=steps=700",
    "--config.optimizer.learning_rate=3e-3",
    "--config.optimizer.schedule.warmup=steps=50",
    "--config.eval.batch_size=64",
    "--config.eval.bootstrap=20",
    "--config.parallel.devices=1",
    "--config.log.tensorboard=false",
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder as transformers saves it: a tokenizer of bytes with a chat template, and a model of random weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("llama")
    special = ["<pad>", "<s>", "</s>", *ROLES]
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(special)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(ROLES),
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(names),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,  # a network of this width hardly learns from values as small as 0.02
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words():
    """3,000 words of 3 to 5 letters; every tenth is held out."""
    rng, found = random.Random(0), set()
    while len(found) < 3000:
        found.add("".join(rng.choice(LETTERS) for _ in range(rng.randint(3, 5))))
    listed = sorted(found)
    return {"test": listed[::10], "train": [word for i, word in enumerate(listed) if i % 10]}


def answer(word):
    return "".join(chr(ord(letter) + 1) for letter in word)


def test_a_rule_is_learned_and_the_export_gives_the_same_answers(
    root, launch, llama, words, tmp_path
):
    chats = tmp_path / "chat.jsonl"
    rows = [
        {"prompt": f"after {word}", "answer": answer(word), "split": split}
        for split, some in words.items()
        for word in some
    ]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = f"--config={root}/configs/finetune_lm.py"
    given = (f"--config.pretrained.source=hf:{llama}", f"--config.data.path={chats}")
    run = f"--workdir={tmp_path}/run"
    assert launch(config, *given, *FLAGS, run) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["test/accuracy"] == 1.0

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"after {word}\n" for word in words["test"]))
    assert launch(run, "--mode=predict", f"--inputs={prompts}") == 0
    written = (tmp_path / "run/predictions.jsonl").read_text().splitlines()
    ours = [json.loads(line)["text"] for line in written]
    assert ours == [answer(word) for word in words["test"]]

    out = tmp_path / "out"
    assert launch(run, "--mode=export", "--format=hf", f"--output={out}") == 0
    assert theirs(out, words["test"]) == ours
    assert theirs(llama, words["test"][:20]) != ours[:20]  # as the one that was not taught does


def theirs(folder, words):
    """What transformers writes, greedily."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    talks = [[{"role": "user", "content": f"after {word}"}] for word in words]
    inputs = tokenizer.apply_chat_template(
        talks, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        made = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    return tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
