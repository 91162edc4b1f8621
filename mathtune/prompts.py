"""Rows to token ids: the one place that builds a prompt, for training, scoring and submission alike.

Ids are made by concatenation, ``encode(prompt) + encode(completion)``: tokenised together they do not split where the
text splits (trl#6105). An overlong prompt loses its middle, never the label or the cue before it (trl#6668).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mathtune.errors import DataError, ModelError
from mathtune.recipe import Prompt

BATCH = 1_000  # texts tokenised at once: beside the ids the tokenizer answers with about 90 bytes a token


@dataclass(frozen=True)
class Examples:
    """Tokenised rows.

    Attributes:
        row_ids: of the rows that are left.
        input_ids: prompt and completion of each.
        prompt_lengths: how many of its first ids are prompt.
        shortened: how many prompts lost their middle.
        dropped: how many rows were dropped because their completion does not fit.
    """

    row_ids: list[int]
    input_ids: list[list[int]]
    prompt_lengths: list[int]
    shortened: int
    dropped: int

    @property
    def labels(self) -> list[list[int]]:
        """The ids with -100 (no loss) in place of the prompt's."""
        return [[-100] * n + ids[n:] for ids, n in zip(self.input_ids, self.prompt_lengths, strict=True)]


class PromptBuilder:
    """Builds prompts and completions as a recipe says, with one tokenizer.

    Args:
        prompt: the recipe's section.
        tokenizer: a Hugging Face fast tokenizer.
        max_length: tokens of prompt and completion together.

    Raises:
        ModelError: chat format without a chat template, or label words whose first tokens do not differ.
    """

    def __init__(self, prompt: Prompt, tokenizer, max_length: int):
        if prompt.format == "chat" and not tokenizer.chat_template:
            raise ModelError("the tokenizer has no chat template", where="prompt.format", remedy="prompt.format=plain")
        self.prompt, self.tokenizer, self.max_length = prompt, tokenizer, max_length
        self._ending = self._chat_ending() if prompt.format == "chat" else tokenizer.eos_token

    def text(self, row: dict[str, Any]) -> str:
        """The prompt of a row as text, up to where the completion begins."""
        body = self._body(row)
        if self.prompt.format == "chat":
            return self.tokenizer.apply_chat_template(self._turns(body), add_generation_prompt=True, tokenize=False)
        return f"{self.prompt.system}\n\n{body}" if self.prompt.system else body

    def prompt_ids(self, rows: Sequence[dict[str, Any]], reserve: int) -> tuple[list[list[int]], int]:
        """Ids of the prompts, each with room for ``reserve`` more tokens, and how many lost their middle."""
        limit = self.max_length - reserve
        ids = self._encode([self.text(row) for row in rows], special=self.prompt.format == "plain")
        shortened = sum(len(one) > limit for one in ids)
        return [lose_middle(one, limit) for one in ids], shortened

    def verifier_prompts(self, rows: Sequence[dict[str, Any]]) -> tuple[list[list[int]], int]:
        """``prompt_ids`` with room for the longer label: the same ids in training and in scoring."""
        labels = (self.prompt.labels.true, self.prompt.labels.false)
        return self.prompt_ids(rows, reserve=max(len(self._completion(word)) for word in labels))

    def verifier_examples(self, rows: Sequence[dict[str, Any]]) -> Examples:
        """Prompts followed by the label word and the end token."""
        words = {True: self._completion(self.prompt.labels.true), False: self._completion(self.prompt.labels.false)}
        prompts, shortened = self.verifier_prompts(rows)
        return Examples([row["row_id"] for row in rows],
                        [ids + words[row["is_correct"]] for ids, row in zip(prompts, rows, strict=True)],
                        [len(ids) for ids in prompts], shortened, dropped=0)

    def solver_examples(self, rows: Sequence[dict[str, Any]], overlong: str) -> Examples:
        """Prompts followed by the worked solution and the end token.

        Raises:
            DataError: prompt and solution do not fit and ``overlong`` is ``"refuse"``.
        """
        prompts = self._encode([self.text(row) for row in rows], special=self.prompt.format == "plain")
        solutions = self._encode([row["solution"] + self._ending for row in rows], special=False)
        fits = [len(a) + len(b) <= self.max_length for a, b in zip(prompts, solutions, strict=True)]
        if not all(fits) and overlong == "refuse":
            worst = fits.index(False)
            raise DataError(
                f"{fits.count(False)} of {len(rows)} solutions do not fit {self.max_length} tokens, the first needs "
                f"{len(prompts[worst]) + len(solutions[worst])}", where=f"row {rows[worst]['row_id']}",
                remedy="raise model.max_length, or leave such rows out with model.overlong=drop")
        kept = [i for i, fit in enumerate(fits) if fit]
        return Examples([rows[i]["row_id"] for i in kept], [prompts[i] + solutions[i] for i in kept],
                        [len(prompts[i]) for i in kept], shortened=0, dropped=len(rows) - len(kept))

    def label_tokens(self) -> tuple[int, int]:
        """First token ids of the true and the false label word, the two whose logits are scored."""
        true, false = (self._completion(word)[0] for word in (self.prompt.labels.true, self.prompt.labels.false))
        if true == false:
            raise ModelError(
                f"the label words {self.prompt.labels.true!r} and {self.prompt.labels.false!r} begin with the same token "
                f"({self.tokenizer.convert_ids_to_tokens(true)!r})", where="prompt.labels",
                remedy="choose words whose first tokens differ, for example prompt.labels.true=' True'")
        return true, false

    def stop_tokens(self) -> list[int]:
        """Ids at which a generated completion ends: the template's end of turn and the tokenizer's end of text."""
        ending = self._encode([self._ending], special=False)[0][0]
        return sorted({ending, self.tokenizer.eos_token_id})

    def grpo_prompt(self, row: dict[str, Any]) -> str | list[dict[str, str]]:
        """The prompt as trl tokenises it to the same ids: text, or turns where the format is chat."""
        return self._turns(self._body(row)) if self.prompt.format == "chat" else self.text(row)

    def parse_words(self, words: str) -> str:
        """What generated words say: ``"true"``, ``"false"`` or ``"malformed"``; strict but for white space."""
        said = words.strip()
        if said == self.prompt.labels.true.strip():
            return "true"
        return "false" if said == self.prompt.labels.false.strip() else "malformed"

    def _completion(self, text: str) -> list[int]:
        return self._encode([text + self._ending], special=False)[0]

    def _encode(self, texts: list[str], special: bool) -> list[list[int]]:
        ids: list[list[int]] = []
        for start in range(0, len(texts), BATCH):
            batch = texts[start:start + BATCH]
            ids += self.tokenizer(batch, add_special_tokens=special, return_attention_mask=False)["input_ids"]
        return ids

    def _body(self, row: dict[str, Any]) -> str:
        return self.prompt.template.format(**{field: row.get(field) for field in ("question", "answer", "solution")})

    def _turns(self, body: str) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.prompt.system}] if self.prompt.system else []
        return [*system, {"role": "user", "content": body}]

    def _chat_ending(self) -> str:
        """What the chat template puts after the assistant's words, found by rendering a marked answer."""
        mark = "MARKEDANSWER"
        turns = [*self._turns("x"), {"role": "assistant", "content": mark}]
        return self.tokenizer.apply_chat_template(turns, tokenize=False).rpartition(mark)[2].rstrip()


def lose_middle(ids: list[int], limit: int) -> list[int]:
    """The ids, shortened to ``limit`` by taking out their middle."""
    if len(ids) <= limit:
        return ids
    head = limit // 2
    return ids[:head] + ids[len(ids) - (limit - head):]
