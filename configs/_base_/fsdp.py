# Fully sharded data parallel, for models that do not fit on one GPU. Each GPU stores a shard of the
# weights, gradients and optimizer state, and gathers the weights of a block to compute it.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='mmgcvit.FSDPStrategy',
    model_wrapper=dict(auto_wrap_policy='mmgcvit.wrap_blocks'),
    state_dict_cfg='full',  # the same checkpoints as without sharding
)
