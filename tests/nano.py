"""The arch of most tests."""

NANO = {
    'embed_dims': 8,
    'depths': (2, 1, 3, 2),
    'num_heads': (1, 2, 2, 4),
    'mlp_ratio': 2,
    'layer_scale_init_value': 0.5,
}
