"""Focal losses for classification, with the names and arguments of ``mmcv._ext``.

Source: "Focal Loss for Dense Object Detection" (arXiv 1708.02002), equation 5.

N: number of samples, C: number of classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each class to ``output`` (N, C).

    Args:
        input: Logits, (N, C).
        target: Class of each sample, (N,). Values outside of 0 to C - 1 mean background.
        weight: Loss weight of each class, (C,), or empty for no weights. Background has weight 1.
        output: Losses, (N, C).
        gamma: Focusing parameter: larger values reduce the loss of well-classified samples more.
        alpha: Weight of the positive class. The other classes have weight 1 - alpha.
    """
    _, q, log_p, alphas, _ = _sigmoid_terms(input, target, alpha)
    loss = -alphas * q**gamma * log_p
    output.copy_(loss * _class_weight(weight, target, loss)[:, None])


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the gradient of each loss with respect to its logit to ``grad_input`` (N, C)."""
    p, q, log_p, alphas, sign = _sigmoid_terms(input, target, alpha)
    grad = -sign * alphas * q**gamma * (q - gamma * p * log_p)
    grad_input.copy_(grad * _class_weight(weight, target, grad)[:, None])


def _sigmoid_terms(input: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, ...]:
    """Return p, 1 - p, log p, alpha and the sign of the logit in p, each (N, C).

    p is the probability of the correct binary label: the predicted probability for the positive
    class, and one minus the predicted probability for the other classes.
    """
    (logits,) = at_least_float32(input)
    positive = target[:, None] == torch.arange(logits.shape[1], device=logits.device)
    sign = positive.to(logits.dtype) * 2 - 1
    logits = logits * sign
    alphas = torch.where(positive, alpha, 1 - alpha).to(logits.dtype)
    return logits.sigmoid(), (-logits).sigmoid(), F.logsigmoid(logits), alphas, sign


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each sample to ``output`` (N,).

    ``input`` is the softmax over the classes, (N, C). Samples with a target below 0 are ignored:
    their loss is 0. The other arguments are those of :func:`sigmoid_focal_loss_forward`.
    """
    p, log_p, used = _softmax_terms(input, target)
    loss = -alpha * (1 - p) ** gamma * log_p * _class_weight(weight, target, p)
    output.copy_(torch.where(used, loss, torch.zeros_like(loss)))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the gradient of each loss with respect to its logits to ``grad_input`` (N, C).

    ``buff`` is the workspace of mmcv's own operator and is ignored.
    """
    p, log_p, used = _softmax_terms(input, target)
    (softmax,) = at_least_float32(input)
    # chain rule: by_log_p is d loss / d log p, and d log p / d logits is one-hot minus softmax
    tiny = torch.finfo(p.dtype).tiny  # avoids 0 to a negative power; log p is 0 in this case
    slope = gamma * (1 - p).clamp(min=tiny) ** (gamma - 1) * p * log_p
    by_log_p = alpha * (slope - (1 - p) ** gamma) * _class_weight(weight, target, p)
    by_log_p = torch.where(used, by_log_p, torch.zeros_like(by_log_p))
    one_hot = F.one_hot(target.clamp(min=0), softmax.shape[1])
    grad_input.copy_(by_log_p[:, None] * (one_hot - softmax))


def _softmax_terms(softmax: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the probability p of the target, log p, and a mask of the used samples, each (N,)."""
    (softmax,) = at_least_float32(softmax)
    p = softmax.gather(1, target.clamp(min=0)[:, None]).squeeze(1)
    return p, p.clamp(min=torch.finfo(p.dtype).tiny).log(), target >= 0


def _class_weight(weight: Tensor, target: Tensor, like: Tensor) -> Tensor:
    """Return the weight of each sample's class, (N,)."""
    if not weight.numel():
        return like.new_ones(len(target))
    inside = (target >= 0) & (target < len(weight))
    chosen = weight.to(like.dtype)[target.clamp(0, len(weight) - 1)]
    return torch.where(inside, chosen, torch.ones_like(chosen))
