# Small GC ViT, Swin and ConvNeXt with equal numbers of parameters: 3.04, 3.08 and 3.05 million.
# All have the depths of their families' small networks: GC ViT-XXT, Swin-T, and ConvNeXt-Atto to
# -Pico have 2, 2, 6 and 2 blocks. The widths make the numbers of parameters equal.
#
# None has drop path or layer scale. With ConvNeXt's usual layer scale of 1e-6, its blocks would
# begin as identities, and this training is too short to open them.
depths = (2, 2, 6, 2)
# feature maps have at most 40x40 tokens: windows of 8x8 cover the third and fourth stage almost
# completely
window_size = 8

gcvit = dict(
    channels=[36, 72, 144, 288],
    backbone=dict(
        type='mmgcvit.GCViT',
        arch=dict(
            embed_dims=36,
            depths=depths,
            num_heads=(1, 2, 4, 8),
            mlp_ratio=2,  # as in GC ViT-S, -B and -L
            layer_scale_init_value=None,
        ),
        window_size=window_size,
        drop_path_rate=0.0,
    ),
)
swin = dict(
    channels=[32, 64, 128, 256],
    backbone=dict(
        type='mmdet.SwinTransformer',
        embed_dims=32,
        depths=depths,
        num_heads=(1, 2, 4, 8),
        window_size=window_size,
        drop_path_rate=0.0,
    ),
)
convnext = dict(
    channels=[38, 76, 152, 304],
    backbone=dict(
        type='mmpretrain.ConvNeXt',
        arch=dict(depths=depths, channels=[38, 76, 152, 304]),
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
        drop_path_rate=0.0,
        layer_scale_init_value=0.0,
    ),
)
