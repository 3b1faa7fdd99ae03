"""A small classifier of drawn shapes, whose evidence is on the shapes."""

import numpy as np
import torch
import torch.nn.functional as F

from mmgcvit.datasets.scene import CLASSES, Shape

SIZE = 64
# OpenMMLab's BGR order does not matter here: classes have colors of their own
TINTS = np.float32([[70, -40, -40], [-40, 70, -40], [-40, -40, 70]])
MODEL = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[110] * 3, std=[60] * 3, num_classes=3),
    backbone=dict(
        type='mmgcvit.GCViT',
        arch=dict(
            embed_dims=8,
            depths=(2, 2, 1, 1),
            num_heads=(1, 2, 2, 2),
            mlp_ratio=2,
            layer_scale_init_value=None,
        ),
        window_size=4,
        drop_path_rate=0.0,
        out_indices=(1,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=16),
)
CONFIG = f"""
default_scope = 'mmpretrain'
model = {MODEL!r}
test_dataloader = dict(
    dataset=dict(
        type='CustomDataset',
        data_root='images',
        metainfo=dict(classes={CLASSES!r}),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    )
)
"""


def draw(rng):
    """Return an image with one shape, (SIZE, SIZE, 3), its label and its mask."""
    image = rng.normal(110, 12, (SIZE, SIZE, 3)).astype(np.float32)
    label, radius = int(rng.integers(3)), rng.uniform(11, 15)
    center = rng.uniform(radius, SIZE - radius, 2)
    corners = None
    if label:
        angles = np.radians(([-45, 45, 135, 225], [-90, 30, 150])[label - 1])
        angles = angles + rng.uniform(-0.2, 0.2)
        corners = center + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    shape = Shape(CLASSES[label], center, radius if label else 0.85 * radius, corners)
    mask = shape.depth(SIZE, SIZE) > 0
    image[mask] += TINTS[label]
    return np.clip(image, 0, 255).astype(np.uint8), label, mask


def train(steps=48, batch=16):
    """Return the classifier, trained so that each cell's evidence for a class is its shape's.

    The logit of a class is the mean of these evidences. A classifier that is only trained on labels
    may spread its evidence over windows and, through squeeze-excitation, over the image.
    """
    import mmpretrain.models  # noqa: F401, registers them
    from mmengine.registry import MODELS, DefaultScope

    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(MODEL)
    rng = np.random.default_rng(0)
    drawn = [draw(rng) for _ in range(4 * batch)]
    images = torch.from_numpy(np.stack([image for image, _, _ in drawn])).permute(0, 3, 1, 2)
    images = (images.float() - 110) / 60
    masks = torch.from_numpy(np.stack([mask for _, _, mask in drawn])).float()
    labels = torch.tensor([label for _, label, _ in drawn])
    wanted = F.one_hot(labels, 3)[:, :, None, None] * F.avg_pool2d(masks[:, None], 8)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for step in range(steps):
        if step % 4 == 0:
            batches = torch.randperm(len(drawn)).split(batch)
        chosen = batches[step % 4]
        (features,) = model.backbone(images[chosen])
        evidence = torch.einsum('bchw,kc->bkhw', features, model.head.fc.weight)
        loss = F.binary_cross_entropy_with_logits(
            3 * evidence - 1, wanted[chosen], pos_weight=torch.tensor(3.0)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()
