# A tenth of the learning rate for the backbone, as in the recipes of DETR and its successors.
#
# mmengine applies only the longest key that matches the name of a parameter. The key 'backbone'
# alone would disable norm_decay_mult=0 for the norms of the backbone, so they have longer keys.
slow = dict(lr_mult=0.1)
slow_and_not_decayed = dict(lr_mult=0.1, decay_mult=0.0)
slow_backbone = {
    'backbone': slow,
    'relative_position_bias_table': slow_and_not_decayed,
    **{
        f'.norm{number}.{name}': slow_and_not_decayed
        for number in range(4)
        for name in ('weight', 'bias')
    },
}
