"""Finds the answer in a completion, and tells whether two answers are the same. No torch.

Extraction follows GSM8K's own script and lm-evaluation-harness, which disagree with each other:

- ``#### N``: the *first* one counts, as in both (``ANS_RE`` in openai/grade-school-math ``dataset.py``; filter
  ``strict-match`` in lm-eval's ``gsm8k.yaml``): a model that runs on starts another problem after its answer. Both take
  ``\\-?[0-9\\.\\,]+`` only; a currency sign, a fraction, ``%`` and bold marks are accepted here, too.
- last number: as lm-eval's ``flexible-extract``, but a full stop or comma after the number is not part of it, and
  commas must group digits (``1,000`` and ``1,00,000``; in ``3,4`` the last number is 4).

Comparison is exact (``fractions.Fraction``), never a float: 0.33 is not 1/3. A percent sign divides by 100, so ``18%``
is ``0.18`` and not ``18``. Units count only where both answers have one. Scientific notation is not read.

Left out: expressions, which take math-verify and a process that can be killed (``mathtune.grading``), and
lm-evaluation-harness's own marks (``mathtune.gsm8k_marks``).
"""

import re
from fractions import Fraction

LONGEST_NUMBER = 400  # characters; int() refuses 4,300 digits, and no answer has that many
LONGEST_EXPRESSION = 200  # characters

_PLAIN = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_MAGNITUDE = rf"(?:(?:\d+ )?\d+/\d+|{_PLAIN})"
_CURRENCY = r"(?:\\?[$€£¥] ?-?)?"
NUMBER = rf"(?:(?<![\w)\]])[-−+] ?)?{_CURRENCY}(?<![A-Za-z_\d]){_MAGNITUDE}(?: ?\\?%)?"

_HASHES = re.compile(rf"####[ \t*_`]*({NUMBER})", re.ASCII)
_SAYS = re.compile(  # the lookahead leaves "the answer is 3 + 4 = 7" to the last number
    rf"\bthe (?:final |correct |right )?answer is\b[^\w\n]{{0,8}}?((?>{NUMBER}))(?! ?[-+*/=×] ?[\d$(])",
    re.ASCII | re.IGNORECASE)
_ANY = re.compile(NUMBER, re.ASCII)

_EXACT = re.compile(
    rf"(?P<sign>[-+]?) ?[$€£¥]? ?(?P<sign_after>-?)(?:(?:(?P<whole>\d+) )?(?P<top>\d+)/(?P<bottom>0*[1-9]\d*)"
    rf"|(?P<plain>{_PLAIN}))(?P<percent> ?%)?(?P<unit> [mglh]| ?°?[A-Za-z]{{2}}[A-Za-z²³/ ]*)?", re.ASCII)
_NOT_UNITS = frozenset("pi hundred thousand million billion trillion dozen and or to of".split())
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")


def extract_answer(completion: str) -> str | None:
    """The answer that a completion gives, as it is written there, or None.

    Looked for in this order: the first ``#### N``; the last "the answer is N"; the last ``\\boxed{...}`` (whatever it
    holds); the last number.
    """
    if strict := extract_strict(completion):
        return strict
    if said := _SAYS.findall(completion):
        return said[-1]
    if boxed := _last_boxed(completion):
        return boxed
    numbers = _ANY.findall(completion)
    return numbers[-1] if numbers else None


def extract_strict(completion: str) -> str | None:
    """The number after the first ``####`` that a number follows, as it is written there, or None."""
    match = _HASHES.search(completion)
    return match.group(1) if match else None


def same_answer(gold: str, given: str | None) -> bool | None:
    """Whether ``given`` (None: there is no answer) means the same as ``gold``; None where only algebra can tell.

    Numbers are compared exactly, after thousands separators, currency signs and units are gone. Anything that holds a
    word is compared as text, without case. The rest (LaTeX, expressions, sets) gives None, unless it is the same text.
    """
    if given is None:
        return False
    gold, given = tidy(gold), tidy(given)
    if not gold or not given:
        return False
    first, second = _exact(gold), _exact(given)
    if first and second:
        return first[0] == second[0] and (first[1] == second[1] or not first[1] or not second[1])
    if gold.casefold() == given.casefold():
        return True
    if max(len(gold), len(given)) > LONGEST_EXPRESSION or _WORD.search(gold) or _WORD.search(given):
        return False
    return None


def _last_boxed(completion: str) -> str | None:
    """What the braces of the last ``\\boxed{`` hold, up to the matching one."""
    _, found, rest = completion.rpartition(r"\boxed{")
    depth = 1
    for place, sign in enumerate(rest if found else ""):
        depth += (sign == "{") - (sign == "}")
        if depth == 0:
            return rest[:place].strip() or None
    return None


def tidy(answer: str) -> str:
    """Without what only decorates an answer: math delimiters, bold marks, LaTeX spaces, a final full stop."""
    answer = answer.replace("−", "-").replace(r"\$", "$").replace(r"\%", "%")
    answer = re.sub(r"\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}", r" \1", answer)
    answer = re.sub(r"\\[,;!: ]|\\[()\[\]]|\s+", " ", answer)
    answer = re.sub(r" ?\bper ?cent\b", "%", answer, flags=re.IGNORECASE)
    answer = answer.strip(" *_`").removesuffix(".").strip(" *_`")
    if len(answer) > 1 and answer[0] == answer[-1] == "$":
        answer = answer[1:-1].strip()
    return answer


def _exact(answer: str) -> tuple[Fraction, str] | None:
    """The number and its unit (small letters, singular; empty if it has none), or None for anything else."""
    match = _EXACT.fullmatch(answer) if len(answer) <= LONGEST_NUMBER else None
    if not match:
        return None
    words = (match["unit"] or "").lower().split()
    if any(word in _NOT_UNITS for word in words):
        return None
    if match["plain"]:
        number = Fraction(match["plain"].replace(",", ""))
    else:
        number = int(match["whole"] or 0) + Fraction(int(match["top"]), int(match["bottom"]))
    if match["percent"]:
        number /= 100
    negative = match["sign"] == "-" or match["sign_after"] == "-"
    return (-number if negative else number), " ".join(words).removesuffix("s")
