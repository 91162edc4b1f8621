"""A small Llama with its own tokenizer, in a complete Hugging Face folder: the demo's base model.

Its weights come with the package (``weights/``, whose README.md is their model card) and are made by
``benchmarks/pretrain_base.py``. Left out: pretraining. torch and transformers are imported inside the functions.
"""

import shutil
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mathtune.demo.problems import corpus
from mathtune.demo.words import PROMPT_WORDS

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast

BASE_VERSION = 2  # to be raised whenever the tokenizer, the configuration or the weights change

WEIGHTS = Path(__file__).parent / "weights"

VOCABULARY = 1024
TOKENIZER_DOCUMENTS = 8_000
CONTEXT = 1024  # tokens

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"
START_HEADER, END_HEADER, END_OF_TURN = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
SPECIAL_TOKENS = (BOS, EOS, PAD, START_HEADER, END_HEADER, END_OF_TURN)

PROMPT_TEXT = "\n".join(PROMPT_WORDS) + "\n " + " ".join(PROMPT_WORDS)  # each without and with its leading space

# Pieces, each of which becomes one or more tokens: an operator with its spaces, the answer mark, one digit, a word
# with its leading space, any other sign, one white space.
PIECES = r" [-+*/=] |#### |\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]|\s"

CHAT_TEMPLATE = (  # Llama 3's markers (Llama 3 model card: "Prompt format")
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}")


def build_base(folder: Path) -> None:
    """Writes the base model's folder: configuration, float32 safetensors, tokenizer with chat template, model card.

    Args:
        folder: made if absent.
    """
    shutil.copytree(WEIGHTS, folder, dirs_exist_ok=True)


def random_base(folder: Path, seed: int) -> None:
    """The same folder with random weights: a base that knows nothing.

    Args:
        folder: made if absent.
        seed: decides the weights; the tokenizer is always the same.
    """
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = train_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(demo_base_config(len(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def demo_base_config(vocab_size: int) -> "LlamaConfig":
    """The shape of the demo's base: about 1.3 million parameters.

    Every linear layer has a multiple of 64 inputs and outputs, so that NF4's blocks of 64 weights fit.

    Args:
        vocab_size: tokens of the tokenizer; rounded up to a multiple of 64.
    """
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=-(-vocab_size // 64) * 64, hidden_size=128, intermediate_size=384, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        bos_token_id=SPECIAL_TOKENS.index(BOS), eos_token_id=SPECIAL_TOKENS.index(EOS),
        pad_token_id=SPECIAL_TOKENS.index(PAD), dtype="float32")


def train_tokenizer(texts: Iterable[str] | None = None) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer: each digit one token, ``encode`` adds BOS and no EOS, any text comes back unchanged.

    Args:
        texts: what to learn the words from; default: the generator's corpus of seed 0.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS))])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    texts = corpus(TOKENIZER_DOCUMENTS, seed=0) if texts is None else texts
    tokenizer.train_from_iterator(chain(texts, [PROMPT_TEXT] * 1000), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=CONTEXT,
        additional_special_tokens=[START_HEADER, END_HEADER, END_OF_TURN], clean_up_tokenization_spaces=False)
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
