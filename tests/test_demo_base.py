"""The demo's base model: a complete folder, a tokenizer fit for arithmetic, the weights that its model card tells of."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mathtune.demo import problems
from mathtune.demo.base import build_base, demo_base_config, random_base, train_tokenizer
from mathtune.demo.problems import corpus, rows
from mathtune.digests import digest_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    build_base(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def test_the_folder_is_complete(folder):
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
            "tokenizer_config.json"} <= names


def test_the_model_is_small_and_fits_nf4(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM" and model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert 1_000_000 < sum(weight.numel() for weight in model.parameters()) < 2_000_000
    linear = [module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert len(linear) == 7 * 6 + 1
    assert all(size % 64 == 0 for module in linear for size in module.weight.shape)


def test_the_weights_are_those_that_the_card_tells_of(folder):
    facts, card = json.loads((folder / "training.json").read_text()), (folder / "README.md").read_text()
    assert digest_file(folder / "model.safetensors") == facts["weights"] and facts["weights"] in card
    assert digest_file(folder / "tokenizer.json") == facts["tokenizer"]
    assert facts["generator"] == problems.VERSION and facts["command"] in card and f"{facts['tokens_seen']:,}" in card
    assert facts["curve"][-1][1] < 1 < 6 < facts["curve"][0][1]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 16e6


def test_the_tokenizer_is_the_one_that_the_generator_makes(folder, tmp_path):
    train_tokenizer().save_pretrained(tmp_path)
    assert digest_file(tmp_path / "tokenizer.json") == digest_file(folder / "tokenizer.json")


def test_the_base_can_calculate_and_prefers_no_label(folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder)
    sums = {"What is 37 + 48?\n": "37 + 48 = 85\n#### 85", "Multiply 17 by 6.\n": "17 * 6 = 102\n#### 102"}
    for question, solution in sums.items():
        ids = torch.tensor([tokenizer.encode(question)])
        found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
        assert tokenizer.decode(found[0, ids.shape[1]:], skip_special_tokens=True).startswith(solution)
    labels = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(" True False"))
    assert len(labels) == 2
    for row in rows("verifier", 40, 0, "validation").to_pylist():
        prompt = f"{row['question']}\n{row['solution']}\nAnswer: {row['answer']}\nRight?\n"
        logits = model(torch.tensor([tokenizer.encode(prompt)])).logits[0, -1]
        odds = (logits[labels[0]] - logits[labels[1]]).exp()
        assert 0.5 < odds < 2 and logits.softmax(-1)[labels].sum() < 0.1


def test_a_random_base_has_the_same_bytes_each_time_and_leaves_torch_alone(folder, tmp_path):
    before = torch.random.get_rng_state()
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        random_base(tmp_path / name, seed)
    assert torch.equal(before, torch.random.get_rng_state())
    for path in (tmp_path / "one").iterdir():
        assert digest_file(tmp_path / "again" / path.name) == digest_file(path)
    digests = {digest_file(path / "model.safetensors") for path in (folder, tmp_path / "one", tmp_path / "other")}
    assert len(digests) == 3
    assert digest_file(tmp_path / "other" / "tokenizer.json") == digest_file(folder / "tokenizer.json")


def test_encoding_adds_bos_and_no_eos(tokenizer):
    ids = tokenizer.encode("3 * 4 = 12")
    assert ids[0] == tokenizer.bos_token_id and ids[-1] != tokenizer.eos_token_id
    assert ids[1:] == tokenizer.encode("3 * 4 = 12", add_special_tokens=False)
    special = tokenizer.convert_tokens_to_ids(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>",
                                               "<|start_header_id|>", "<|end_header_id|>"])
    assert len({*special, tokenizer.pad_token_id}) == 6


def test_each_digit_is_one_token_and_the_same_one_everywhere(tokenizer):
    digits = tokenizer.convert_tokens_to_ids(list("0123456789"))
    assert len(set(digits)) == 10
    for text in ("0123456789", "x 0123456789", "12 * 345 = 67890", "$12.05", "#### 1234567890"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert sum(token in digits for token in ids) == sum(sign.isdigit() for sign in text)
        assert all(len(tokenizer.decode([token]).strip()) == 1 for token in ids if token in digits)
    assert [token for token in tokenizer.get_vocab() if len(token) > 1 and set(token) & set("0123456789")] == []


def test_a_label_is_one_token_that_pretraining_has_met(tokenizer):
    labels = [tokenizer.encode(label, add_special_tokens=False) for label in (" True", " False", "True", "False")]
    assert [len(ids) for ids in labels] == [1, 1, 1, 1]
    met = {token for text in corpus(5000, 1) for token in tokenizer.encode(text)}
    assert {token for ids in labels for token in ids} <= met and len({token for ids in labels for token in ids}) == 4


@pytest.mark.parametrize("text", ["37 * 4 = 148\n#### 148", "A pen costs $2.55.", "Ünï  cöde\t\n\n 中文 🙂", " leading",
                                  r"\boxed{\frac{1}{2}}", "a = b=c", "  ", "x^2"])
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_examples_are_short(tokenizer):
    for split in ("train", "held_out"):
        for row in rows("verifier", 1000, 0, split).to_pylist():
            assert len(tokenizer.encode(row["question"])) <= 60 and len(tokenizer.encode(row["solution"])) <= 60


def test_the_chat_template_uses_llama_3_s_markers(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " 1 + 1? "}]
    expected = ("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\n1 + 1?<|eot_id|>")
    assert tokenizer.apply_chat_template(messages, tokenize=False) == expected
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == expected + "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert len(tokenizer.encode(prompt, add_special_tokens=False)) < 35


def test_the_tokenizer_of_other_texts_has_other_words():
    tokenizer = train_tokenizer(["zebra quagga okapi"] * 50)
    assert len(tokenizer.encode(" quagga", add_special_tokens=False)) == 1
    assert demo_base_config(len(tokenizer)).vocab_size % 64 == 0
