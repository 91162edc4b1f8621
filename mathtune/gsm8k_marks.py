"""GSM8K's two marks exactly as lm-evaluation-harness gives them, so that figures can be held beside published ones.

From ``lm_eval/tasks/gsm8k/gsm8k.yaml`` (version 3.0; lm-eval 0.4.13), its ``RegexFilter`` and its ``exact_match``: an answer is
extracted by a regular expression, and compared as text after the same substitutions in both. So 18.0 is not 18, and
``#### 18%`` is 18. What is wrong there stays wrong here; the project's own answer is ``mathtune.answers``.

Left out: the harness also ends a completion at "Question:", which its own prompt calls for. Here it ends where the prompt's
own stop tokens end it.
"""

import re

INVALID = "[invalid]"  # RegexFilter's answer where there is none

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = [re.compile(pattern) for pattern in (",", r"\$", "(?s).*#### ", r"\.$")]  # in this order


def strict_answer(completion: str) -> str:
    """``strict-match``: what follows the first ``#### `` that digits, full stops or commas follow, or ``INVALID``."""
    match = _STRICT.search(completion)
    return match.group(1) if match else INVALID


def flexible_answer(completion: str) -> str:
    """``flexible-extract``: the last run of digits and ``$.,``, also one without a digit ("..."), or ``INVALID``."""
    matches = _FLEXIBLE.findall(completion)
    return (matches[-1][0] or matches[-1][1]) if matches else INVALID


def exact_match(answer: str, gold: str) -> bool:
    """The harness's comparison; ``gold`` is the right answer, or GSM8K's whole solution that ends in it."""
    return _comparable(answer) == _comparable(gold)


def _comparable(text: str) -> str:
    for pattern in _IGNORED:
        text = pattern.sub("", text)
    return text.lower()
