"""LoRA adapters: fresh ones, links' adapters, and changes of shape on the way to GRPO. Masters are float32 always.

trl's constructors round a QLoRA adapter to bfloat16, which ``.float()`` cannot undo; at a learning rate of 3e-5 22% of
A's elements would then never move. ``restore_masters`` puts the float32 values back before an optimizer exists.
"""

import json
from contextlib import nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from mathtune.digests import digest_file
from mathtune.errors import ChainError, ModelError, TrainingError
from mathtune.recipe import Lora

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CARD = """---
base_model: {base}
library_name: peft
---
A LoRA adapter (rank {rank}, alpha {alpha}) trained by mathtune on top of `{base}`.

    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "THIS FOLDER")
"""


def towers(config) -> str | None:
    """Pattern of the modules outside the text of a model that also sees or hears, where the same names occur; else None."""
    return r".*(vision|audio|multi_modal)[^.]*\..*" if config.get_text_config() is not config else None


def attach(model, lora: Lora, start: Path | None) -> PeftModel:
    """The base with a trainable adapter: fresh (from torch's random state), or the weights in folder ``start``.

    Raises:
        ModelError: a target module does not exist, or the folder's tensors do not fit this model and shape.
    """
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
                        target_modules=sorted(lora.targets), bias="none", task_type="CAUSAL_LM",
                        exclude_modules=towers(model.config))
    try:
        # a fresh adapter is drawn on the CPU: the same on every card; one that is replaced need not be
        with nullcontext() if start is None else torch.device(model.device):
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(str(error), where="lora.targets", remedy="name modules of this model") from error
    if start is not None:
        restore_masters(adapted, load_file(start / WEIGHTS))
    return adapted


def parameter_counts(model: PeftModel) -> dict[str, int]:
    """``trainable`` parameters, and all ``parameters`` with the base's: weights, however many of them NF4 packs in a byte."""
    trainable, parameters = model.get_nb_trainable_parameters()
    return {"trainable": trainable, "parameters": parameters}


def masters(model: PeftModel) -> dict[str, torch.Tensor]:
    """Float32 copies of the active adapter's tensors on the CPU, by their name in a PEFT file."""
    state = get_peft_model_state_dict(model, adapter_name="default")
    return {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in sorted(state.items())}


def restore_masters(model: PeftModel, tensors: dict[str, torch.Tensor]) -> None:
    """Makes the adapter's parameters float32 and equal to ``tensors``, and holds that they are.

    Raises:
        ModelError: tensors missing, left over, or of another shape.
        TrainingError: the parameters do not equal the tensors afterwards.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if ".default." in name}
    targets = {name.replace(".default.", "."): parameter for name, parameter in parameters.items()}
    if targets.keys() != tensors.keys():
        odd = sorted(targets.keys() ^ tensors.keys())
        raise ModelError(f"the adapter's tensors do not fit this model: {odd[0]} and {len(odd) - 1} more",
                         where=WEIGHTS, remedy="the chain was trained with another base or other lora.targets")
    for name, parameter in targets.items():
        parameter.data = tensors[name].to(parameter.device, torch.float32, copy=True)
    current = masters(model)
    if not all(torch.equal(current[name], tensor.float()) for name, tensor in tensors.items()):
        raise TrainingError("the adapter in memory differs from the link's tensors", where=WEIGHTS)


def reshape_for(tensors: dict[str, torch.Tensor], link: Lora, wanted: Lora, model: PeftModel) -> dict[str, torch.Tensor]:
    """A link's tensors under another alpha or more target modules, with the same logits.

    B is scaled by old/new alpha (the product scales by alpha / rank); a target that the link has not begins with B = 0
    and the A that ``model`` was initialised with.

    Raises:
        ChainError: another rank.
    """
    if link.rank != wanted.rank:
        raise ChainError(f"the link has rank {link.rank}, {wanted.rank} was asked for", where="lora.rank",
                         remedy=f"lora.rank={link.rank}, or a new chain")
    scale = link.alpha / wanted.alpha
    reshaped = {}
    for name, fresh in masters(model).items():
        if name not in tensors:
            reshaped[name] = torch.zeros_like(fresh) if ".lora_B." in name else fresh
        else:
            reshaped[name] = tensors[name] * scale if ".lora_B." in name else tensors[name]
    return reshaped


def save_adapter(tensors: dict[str, torch.Tensor], lora: Lora, base_name: str, folder: Path,
                 excluded: str | None = None) -> None:
    """A plain PEFT folder that ``PeftModel.from_pretrained`` loads without this project; ``excluded``: see ``towers``."""
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, bias="none",
                        task_type="CAUSAL_LM", base_model_name_or_path=base_name, inference_mode=True, exclude_modules=excluded)
    values = {**config.to_dict(), "target_modules": sorted(lora.targets)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "README.md").write_text(CARD.format(base=base_name, rank=lora.rank, alpha=lora.alpha))
    (folder / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True, default=str) + "\n")


def adapter_digest(folder: Path) -> str:
    """Digest of an adapter: of its tensors' file, whatever paths its configuration names."""
    return digest_file(folder / WEIGHTS)


def load_adapter(model, folder: Path) -> PeftModel:
    """The base with a link's adapter for inference, float32, every tensor checked against the file."""
    config = json.loads((folder / CONFIG).read_text())
    lora = Lora(rank=config["r"], alpha=config["lora_alpha"], targets=tuple(config["target_modules"]))
    adapted = attach(model, lora, folder)
    adapted.eval()
    return adapted
