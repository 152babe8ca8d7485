"""Where the second-order penalty R(δ) is a theorem: networks without kinks."""

from torch import nn

from rapa_lib.layers.conv import RapaConv2d

# Twice differentiable in their inputs, image by image; dropout is the identity in evaluation mode.
_SMOOTH = (
    RapaConv2d, nn.Conv2d, nn.Linear, nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout,
    nn.Tanh, nn.GELU, nn.Sigmoid, nn.SiLU, nn.Mish, nn.Softplus, nn.LogSigmoid, nn.Softsign,
    nn.Softmax, nn.LogSoftmax, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.GroupNorm, nn.LayerNorm,
)  # fmt: skip


def penalty_applies(model: nn.Module) -> bool:
    """Whether R(δ) is the limit of the measured penalty: a smooth network, image by image.

    Every module without submodules must be known as smooth: ReLU and maximum pooling have kinks,
    batch normalisation ties images together and leaves the mean kernels foreign statistics, and
    what is unknown counts as not smooth. What a module's ``forward`` computes by functions, such
    as ``F.relu``, cannot be seen.

    Args:
        model: any module.

    Source: docs/self_regularization.md, "Kinks".
    """
    leaves = [module for module in model.modules() if not any(module.children())]
    return all(isinstance(leaf, _SMOOTH) for leaf in leaves)
