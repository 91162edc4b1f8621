"""Prompts: ids by concatenation, labels that survive every length, and the same ids wherever a prompt is used."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathtune.errors import DataError, ModelError
from mathtune.prompts import PromptBuilder, lose_middle
from mathtune.recipe import Labels, Prompt

TEMPLATE = "Question: {question}\nSolution: {solution}\nAnswer: {answer}\nCorrect?"
ROW = {"row_id": 7, "question": "How much is 2 + 3?", "answer": "5", "solution": "2 + 3 = 5\n#### 5", "is_correct": True}


@pytest.fixture(scope="module")
def tokenizer():
    from mathtune.demo.base import train_tokenizer

    return train_tokenizer()


def builder(tokenizer, max_length=128, **changes):
    return PromptBuilder(Prompt(**{"template": TEMPLATE, **changes}), tokenizer, max_length)


def test_an_example_is_prompt_then_label_then_end(tokenizer):
    examples = builder(tokenizer).verifier_examples([ROW, {**ROW, "row_id": 8, "is_correct": False}])
    prompt = tokenizer("Question: How much is 2 + 3?\nSolution: 2 + 3 = 5\n#### 5\nAnswer: 5\nCorrect?")["input_ids"]
    true, false = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in (" True", " False"))
    assert examples.input_ids == [prompt + true + [tokenizer.eos_token_id], prompt + false + [tokenizer.eos_token_id]]
    assert prompt[0] == tokenizer.bos_token_id
    assert examples.labels[0] == [-100] * len(prompt) + true + [tokenizer.eos_token_id]
    assert (examples.row_ids, examples.shortened, examples.dropped) == ([7, 8], 0, 0)


@given(st.text(max_size=400), st.booleans(), st.integers(24, 200))
def test_whatever_the_length_the_label_is_whole_and_the_cue_stays(tokenizer, question, label, max_length):
    build = builder(tokenizer, max_length)
    examples = build.verifier_examples([{**ROW, "question": question, "is_correct": label}])
    word = " True" if label else " False"
    ending = tokenizer(word, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    ids, length = examples.input_ids[0], examples.prompt_lengths[0]
    assert ids[length:] == ending
    assert len(ids) <= max_length
    assert tokenizer.decode(ids[:length]).endswith("Correct?")
    whole = len(tokenizer(build.text({**ROW, "question": question}))["input_ids"]) + len(ending) <= max_length
    assert examples.shortened == (0 if whole else 1)


@given(st.lists(st.integers(), max_size=50), st.integers(1, 60))
def test_a_shortened_list_keeps_both_ends(ids, limit):
    short = lose_middle(ids, limit)
    assert len(short) == min(len(ids), limit)
    if len(ids) > limit:
        head = limit // 2
        assert short[:head] == ids[:head] and short[head:] == ids[len(ids) - (limit - head):]
    else:
        assert short == ids


def test_a_text_with_braces_is_taken_as_it_is(tokenizer):
    row = {**ROW, "question": r"What is \frac{1}{2} of {x}?"}
    assert r"\frac{1}{2} of {x}?" in builder(tokenizer).text(row)


def test_labels_that_begin_alike_are_refused(tokenizer):
    with pytest.raises(ModelError, match="begin with the same token"):
        builder(tokenizer, labels=Labels(true=" 1 yes", false=" 1 no")).label_tokens()
    true, false = builder(tokenizer).label_tokens()
    assert (tokenizer.convert_ids_to_tokens(true), tokenizer.convert_ids_to_tokens(false)) == ("ĠTrue", "ĠFalse")


@pytest.mark.parametrize(("words", "said"), [
    (" True", "true"), ("True\n", "true"), (" False", "false"), ("Falsehood", "malformed"), ("", "malformed"),
    ("true", "malformed"), (" True False", "malformed"), ("No", "malformed")])
def test_words_are_read_strictly(tokenizer, words, said):
    assert builder(tokenizer).parse_words(words) == said


def test_the_chat_format_is_the_tokenizers_own(tokenizer):
    build = builder(tokenizer, format="chat", system="You check answers.", labels=Labels(true="True", false="False"))
    examples = build.verifier_examples([ROW])
    turns = [{"role": "system", "content": "You check answers."}, {"role": "user", "content": TEMPLATE.format(**ROW)},
             {"role": "assistant", "content": "True"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
    assert examples.input_ids[0] == whole
    assert whole.count(tokenizer.bos_token_id) == 1
    assert tokenizer.convert_ids_to_tokens(whole[-1]) == "<|eot_id|>"
    assert whole[-1] in build.stop_tokens() and tokenizer.eos_token_id in build.stop_tokens()


def test_the_chat_format_needs_a_template(tokenizer):
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(ModelError, match="no chat template"):
            builder(tokenizer, format="chat")
    finally:
        tokenizer.chat_template = template


def test_an_overlong_solution_is_refused_or_dropped_as_the_recipe_says(tokenizer):
    build = builder(tokenizer, 40, template="Question: {question}\nSolution:\n")
    rows = [ROW, {**ROW, "row_id": 8, "solution": "1 + 1 = 2\n" * 20 + "#### 2"}]
    with pytest.raises(DataError, match="1 of 2 solutions do not fit 40 tokens") as caught:
        build.solver_examples(rows, "refuse")
    assert caught.value.where == "row 8" and "model.overlong=drop" in caught.value.remedy
    examples = build.solver_examples(rows, "drop")
    assert examples.row_ids == [7] and examples.dropped == 1
    assert tokenizer.decode(examples.input_ids[0][examples.prompt_lengths[0]:]) == ROW["solution"] + tokenizer.eos_token
