"""Adapters: float32 masters through trl's constructors, plain PEFT folders, changes of shape that keep the logits."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mathtune.adapters import attach, load_adapter, masters, parameter_counts, reshape_for, restore_masters, save_adapter
from mathtune.errors import ChainError, ModelError, TrainingError
from mathtune.models import borrowed, load_base
from mathtune.recipe import Hardware, Lora, Model

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.fixture(scope="module")
def base(tiny_base, tmp_path_factory):
    return load_base(Model(base=str(tiny_base)), Hardware(device="cpu"), tmp_path_factory.mktemp("cache"))


@contextmanager
def attached(base, lora):
    with borrowed(base) as model:
        adapted = attach(model, lora, None)
        yield adapted
        adapted.unload()


def trained_like(model):
    """Tensors as training leaves them: neither zero nor representable in bfloat16."""
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(tensor.shape, generator=generator) * 0.1 for name, tensor in masters(model).items()}


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(6, 30)[None]).logits


def test_a_saved_adapter_is_loaded_by_peft_alone_and_says_the_same(base, tmp_path):
    from peft import PeftModel

    lora = Lora(rank=8, alpha=16)
    plain = logits(base.model)
    with attached(base, lora) as adapted:
        tensors = trained_like(adapted)
        restore_masters(adapted, tensors)
        expected = logits(adapted)
    save_adapter(tensors, lora, str(base.folder), tmp_path)
    with borrowed(base) as model:
        foreign = PeftModel.from_pretrained(model, tmp_path)
        assert torch.equal(logits(foreign), expected)
        foreign.unload()
    with borrowed(base) as model:
        ours = load_adapter(model, tmp_path)
        assert torch.equal(logits(ours), expected)
        assert all(parameter.dtype == torch.float32 for name, parameter in ours.named_parameters() if "lora" in name)
        ours.unload()
    assert torch.equal(logits(base.model), plain) and not torch.equal(plain, expected)


def test_an_evaluation_does_not_change_what_training_computes(base):
    """bitsandbytes repacks NF4 weights on some CPUs at the first evaluation, for good."""
    def gradient():
        with attached(base, Lora(rank=8)) as adapted:
            restore_masters(adapted, trained_like(adapted))
            adapted.train()
            adapted(input_ids=torch.arange(6, 30)[None], labels=torch.arange(6, 30)[None]).loss.backward()
            return {name: parameter.grad.clone() for name, parameter in adapted.named_parameters() if parameter.requires_grad}

    before = gradient()
    logits(base.model)
    after = gradient()
    assert all(torch.equal(after[name], grad) and grad.abs().sum() > 0 for name, grad in before.items())


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_parameters_are_counted_as_weights_not_as_packed_bytes(tiny_base, tmp_path, quantization):
    from safetensors.torch import load_file

    base = load_base(Model(base=str(tiny_base), quantization=quantization), Hardware(device="cpu"), tmp_path)
    lora, config = Lora(rank=4, targets=ATTENTION), base.model.config
    kv = config.hidden_size * config.num_key_value_heads // config.num_attention_heads
    added = 4 * config.num_hidden_layers * (2 * 2 * config.hidden_size + 2 * (config.hidden_size + kv))
    weights = sum(tensor.numel() for tensor in load_file(tiny_base / "model.safetensors").values())
    with attached(base, lora) as adapted:
        assert parameter_counts(adapted) == {"trainable": added, "parameters": weights + added}


def test_masters_are_held_to_be_the_files(base):
    with attached(base, Lora(rank=8)) as adapted:
        tensors = trained_like(adapted)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)  # as trl's constructors do
        restore_masters(adapted, tensors)
        assert all(torch.equal(masters(adapted)[name], tensor) for name, tensor in tensors.items())
        assert {parameter.dtype for parameter in adapted.parameters() if parameter.requires_grad} == {torch.float32}
        with pytest.raises(ModelError, match="do not fit this model"):
            restore_masters(adapted, dict(list(tensors.items())[1:]))
        broken = {**tensors, next(iter(tensors)): torch.full_like(next(iter(tensors.values())), torch.nan)}
        with pytest.raises(TrainingError):
            restore_masters(adapted, broken)


@pytest.mark.parametrize("wanted", [Lora(rank=8, alpha=32, targets=ATTENTION), Lora(rank=8, alpha=64),
                                    Lora(rank=8, alpha=32)], ids=["alpha", "targets", "both"])
def test_another_alpha_and_more_targets_keep_the_logits(base, wanted):
    link = Lora(rank=8, alpha=64, targets=ATTENTION)
    with attached(base, link) as adapted:
        tensors = trained_like(adapted)
        restore_masters(adapted, tensors)
        expected = logits(adapted)
    with attached(base, wanted) as changed:
        restore_masters(changed, reshape_for(tensors, link, wanted, changed))
        torch.testing.assert_close(logits(changed), expected, rtol=1e-5, atol=1e-4)
        new = [name for name in masters(changed) if name not in tensors]
        assert bool(new) == (len(wanted.targets) > len(link.targets))


def test_another_rank_is_refused(base):
    with attached(base, Lora(rank=4)) as adapted, pytest.raises(ChainError, match="the link has rank 8, 4 was asked for"):
        reshape_for(masters(adapted), Lora(rank=8), Lora(rank=4), adapted)


def test_a_target_that_is_not_there_is_refused(base):
    with borrowed(base) as model, pytest.raises(ModelError, match="nowhere"):
        attach(model, Lora(targets=("nowhere",)), None)


def test_a_borrowed_base_comes_back_as_it_was(base):
    before = set(vars(base.model))
    config = base.model.config.to_dict()
    with borrowed(base) as model:
        model.forward = lambda *a, **k: None
        model.config.pad_token_id = 77
        model.gradient_checkpointing_enable()
        model.train()
    assert set(vars(base.model)) == before and "forward" not in vars(base.model)
    assert base.model.config.to_dict() == config and not base.model.training
    assert base.model.config is base.model.model.layers[0].self_attn.config  # what switches attention reaches every layer
    assert not base.model.is_gradient_checkpointing
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


@pytest.mark.parametrize(("missing", "message"), [
    ("tokenizer.json", "has no tokenizer"), ("model.safetensors", "no \\*.safetensors")])
def test_an_incomplete_model_folder_is_refused(tiny_base, tmp_path, missing, message):
    import shutil

    from mathtune.models import locate_base

    folder = Path(shutil.copytree(tiny_base, tmp_path / "model"))
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=message):
        locate_base(Model(base=str(folder)), tmp_path)
