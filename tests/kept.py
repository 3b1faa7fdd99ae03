"""What a network keeps for the backward pass."""

import torch

from mmgcvit.models.gcvit import FusedMBConv


def gelu_outputs(network, images):
    """Return the numbers in each output of GELU outside of the blocks."""
    sizes, handles = [], []
    for module in network.modules():
        if isinstance(module, FusedMBConv):
            for layer in (module.dwconv, module.se.fc1):
                hook = layer.register_forward_hook(lambda _, __, out: sizes.append(out.numel()))
                handles.append(hook)
    network(images)
    for handle in handles:
        handle.remove()
    return sizes


def kept_by(network, run):
    """Return run() and the numbers in each tensor that it keeps, parameters left out."""
    kept = {}
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = run()
    return outputs, list(kept.values())
