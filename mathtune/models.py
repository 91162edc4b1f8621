"""Loads the frozen base and its tokenizer: from a folder, the Hub, or the package itself.

Only safetensors are read and no remote code runs. What this leaves out: adapters (``mathtune.adapters``).
"""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from mathtune.devices import Compute, choose_compute
from mathtune.digests import digest_file, digest_value
from mathtune.errors import MachineError, ModelError
from mathtune.files import write_json
from mathtune.folders import LocalFolders
from mathtune.recipe import Hardware, Model

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
                   "chat_template.jinja", "vocab.json", "merges.txt")
BUILTIN_DEMO = "builtin:demo"


@dataclass(frozen=True)
class Base:
    """A loaded base: frozen model, tokenizer (padding on the left), and where it computes."""

    model: PreTrainedModel
    tokenizer: object
    compute: Compute
    folder: Path


def locate_base(spec: Model, cache: Path) -> Path:
    """The folder of a base, fetched or built first if need be.

    Raises:
        ModelError: no such folder or repository, no safetensors, or no tokenizer.
    """
    if spec.base == BUILTIN_DEMO:
        return _demo_base(cache)
    folder = Path(spec.base)
    if not folder.is_dir():
        folder = _fetch(spec)
    if not list(folder.glob("*.safetensors")):
        raise ModelError("no *.safetensors there: pickled weights are not loaded", where=str(folder),
                         remedy="convert it with save_pretrained, or name another model.base")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError("the model folder has no tokenizer", where=str(folder),
                         remedy="copy tokenizer.json and tokenizer_config.json beside the weights")
    return folder


@contextmanager
def without_remote_code(folder: Path) -> Iterator[None]:
    """Says in our words that a base cannot be had without running code that came with it.

    Raises:
        ModelError: it cannot.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ModelError("it comes with code of its own, which is never run", where=str(folder),
                         remedy="name a model.base that transformers knows by itself") from error


def load_tokenizer(folder: Path):
    """The tokenizer, padding on the left so that the last position of a batch is the prompt's last token."""
    with without_remote_code(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(spec: Model, hardware: Hardware, cache: Path) -> Base:
    """Base and tokenizer, weights in NF4 with double quantisation or in the compute dtype."""
    folder, compute = locate_base(spec, cache), choose_compute(spec, hardware)
    quantization = None
    if spec.quantization == "nf4":
        quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                          bnb_4bit_compute_dtype=compute.dtype)
    with without_remote_code(folder):
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=quantization, dtype=compute.dtype, device_map={"": compute.device},
            use_safetensors=True, trust_remote_code=False)
    model.requires_grad_(False)
    model.eval()
    _keep_nf4_layout(model)
    return Base(model, load_tokenizer(folder), compute, folder)


def base_digests(folder: Path, cache: Path) -> dict[str, str]:
    """Digests of the weights with their configuration, and of the tokenizer.

    A large file's digest is remembered by its path, size and time, so that a second run does not read 16 GB again.
    """
    remembered_at = cache / "digests.json"
    remembered = json.loads(remembered_at.read_text()) if remembered_at.is_file() else {}

    def digest(path: Path) -> str:
        stat = path.stat()
        mark = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        if mark not in remembered:
            remembered[mark] = digest_file(path)
        return remembered[mark]

    weights = {path.name: digest(path) for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"])}
    tokenizer = {name: digest(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
    write_json(remembered_at, remembered)
    return {"base": digest_value(weights), "tokenizer": digest_value(tokenizer)}


@contextmanager
def borrowed(base: Base) -> Iterator[PreTrainedModel]:
    """The base's model for one job, given back as it was.

    trl replaces ``forward`` and rewrites configurations, Trainer switches gradient checkpointing on: a warm engine's
    next job must see none of it. Configurations stay the objects that they are, since every layer refers to them: transformers
    5.17 would switch the attention of a copy, and layers that still see the old one mix the examples of a pack.
    """
    model = base.model
    config, restore = model.config, _restorer(model.config)
    generation_config = copy.deepcopy(model.generation_config)
    attributes, hooks = set(vars(model)), dict(model.get_input_embeddings()._forward_hooks)
    try:
        yield model
    finally:
        model.gradient_checkpointing_disable()
        embeddings = model.get_input_embeddings()
        embeddings._forward_hooks.clear()  # one a job that recomputed activations; peft removes them only in part
        embeddings._forward_hooks.update(hooks)
        for name in set(vars(model)) - attributes:
            delattr(model, name)
        model.config, model.generation_config = config, generation_config
        restore()
        model.requires_grad_(False)
        model.eval()


def _restorer(config: PretrainedConfig) -> Callable[[], None]:
    """What gives a configuration, and those inside it, the values that they have now."""
    inside = {name: value for name, value in vars(config).items() if isinstance(value, PretrainedConfig)}
    values = {**copy.deepcopy({name: value for name, value in vars(config).items() if name not in inside}), **inside}
    restorers = [_restorer(one) for one in inside.values()]

    def restore() -> None:
        vars(config).clear()
        vars(config).update(values)
        for one in restorers:
            one()

    return restore


def _keep_nf4_layout(model: PreTrainedModel) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes' first evaluation repacks the weights for good, for a bfloat16 kernel: later
    training would compute other numbers than a freshly loaded base (``Linear4bit.forward``, bitsandbytes 0.50)."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _demo_base(cache: Path) -> Path:
    from mathtune.demo.base import BASE_VERSION, build_base

    folders, name = LocalFolders(cache), f"demo-base-{BASE_VERSION}"
    if folders.fetch(name) is None:
        folders.publish(name, lambda staging: build_base(staging) or {}, {"stage": "demo-base"})
    return folders.path(name)


def _fetch(spec: Model) -> Path:
    try:
        return Path(snapshot_download(spec.base, revision=spec.revision, allow_patterns=[
            "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", *TOKENIZER_FILES]))
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:  # a gated one is not found, too
        raise ModelError(f"neither a folder nor a model that the Hub lets you fetch: {str(error).splitlines()[0]}",
                         where=f"model.base={spec.base}",
                         remedy="check the name; for a gated model set HF_TOKEN and accept its licence") from error
    except Exception as error:
        raise MachineError(f"the Hub cannot be reached: {error}", where=f"model.base={spec.base}",
                           remedy="run the same command again; with the files in a folder, model.base=FOLDER") from error
