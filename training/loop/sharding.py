"""FSDP2 for big backbones: W, M and the bank in shards, one a process; what a language owns is whole in each of them."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from modeling_master_asr import MasterASRForCTC
from modeling_master_asr.artisan_master_asr import ArtisanLinear


def blocks_of(backbone: nn.Module) -> list[tuple[nn.Module, nn.ModuleList]]:
    """`(encoder, its list of blocks)`: the outermost lists whose entries hold Artisan layers."""
    found, inside = [], set()
    for owner in backbone.modules():
        for child in owner.children():
            if isinstance(child, nn.ModuleList) and id(child) not in inside:
                if all(any(isinstance(m, ArtisanLinear) for m in block.modules()) for block in child):
                    found.append((owner, child))
                    inside |= {id(m) for m in child.modules()}
    return found


def shard(model: MasterASRForCTC, accelerator) -> None:
    """Shards the model, on its device already, in place and block by block; optimizers are made afterwards, on the new parameters.

    Raises:
        ValueError: if there is only one process.
    """
    if accelerator.num_processes == 1:
        raise ValueError("--shard divides the weights among processes, and there is one. Start several: accelerate launch --num_processes 8 ...")
    # the logits are a view; nothing here writes into them
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for encoder, blocks in blocks_of(model.master_asr.backbone):
        encoder._is_fsdp_managed_module = True  # to Transformers: no layer drop, which would leave a process alone in a block
        for block in blocks:
            fully_shard(block, mesh=mesh)
    # Processes train different languages in the same step, and FSDP reduces in lockstep: the languages are ours to average.
    fully_shard(model, mesh=mesh, reshard_after_forward=True, ignored_params=set(model.assemblies.parameters()))


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has divided this model."""
    return isinstance(model, FSDPModule)


def average_languages(model: MasterASRForCTC) -> None:
    """Averages over the processes the gradients of what languages own; what none of them used keeps none, as under DDP."""
    parameters = [p for p in model.assemblies.parameters() if p.requires_grad]
    if not parameters:  # the dense baseline: nothing is masked, heads are rows of the bank
        return
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    reduced = [p for p, is_used in zip(parameters, used.tolist()) if is_used]
    if not reduced:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in reduced])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, grad in zip(reduced, flat.split([p.numel() for p in reduced])):
        parameter.grad = grad.view_as(parameter).clone()


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> torch.Tensor:
    """`clip_grad_norm_` by the norm of whole and sharded gradients together, which it returns."""
    moving = [p for p in parameters if p.grad is not None]
    sharded = [p for p in moving if isinstance(p.grad, DTensor)]
    plain = [p for p in moving if not isinstance(p.grad, DTensor)]
    if not sharded:
        return nn.utils.clip_grad_norm_(plain, max_norm)
    norms = [nn.utils.get_total_norm([p.grad for p in kind]) for kind in (sharded, plain) if kind]
    norm = torch.linalg.vector_norm(torch.stack([n.full_tensor() if isinstance(n, DTensor) else n for n in norms]))
    for kind in (sharded, plain):
        nn.utils.clip_grads_with_norm_(kind, max_norm, norm)
    return norm


def whole(state, keep: bool = True):
    """A state, its sharded tensors gathered on the CPU; every process has to call it. Where `keep` is False they become None."""
    if isinstance(state, DTensor):
        gathered = state.full_tensor()
        return gathered.cpu() if keep else None
    if isinstance(state, dict):
        return {name: whole(value, keep) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(whole(value, keep) for value in state)
    return state


def as_sharded(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole value divided as another is, which may be whole."""
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


def load_model_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Loads whole tensors into a model, sharded or not."""
    targets = model.state_dict()
    model.load_state_dict({name: as_sharded(value, targets[name]) for name, value in state.items()})


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Loads a whole state into an optimizer of whole or sharded parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {i: {name: as_sharded(value, parameters[i]) for name, value in of_one.items()} for i, of_one in state["state"].items()}
    optimizer.load_state_dict({**state, "state": moments})


def unsharded(model: MasterASRForCTC) -> MasterASRForCTC:
    """A whole copy of a sharded model, in every process; another model is returned as it is."""
    if not is_sharded(model):
        return model
    copy = MasterASRForCTC(model.config)
    copy.load_state_dict(whole(model.state_dict()))
    if model.master_asr.stored is not None:
        copy.master_asr.remember(model.master_asr.stored)  # whether it still is that base, its values say
    return copy.to(next(model.assemblies.parameters()).device).eval()
