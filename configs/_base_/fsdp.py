# Fully sharded data parallel, for models that do not fit into one GPU otherwise. Each GPU holds a
# part of the weights, gradients and optimizer state, and gathers a block's weights to compute it.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='mmgcvit.FSDPStrategy',
    model_wrapper=dict(auto_wrap_policy='mmgcvit.wrap_blocks'),
    state_dict_cfg='full',  # the same checkpoints as without sharding
)
