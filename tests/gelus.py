"""How much the outputs of GELU in the convolutional parts take."""

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
