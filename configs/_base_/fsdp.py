# Fully sharded data parallel: each GPU keeps a part of weights, gradients and optimizer state, and
# fetches a block's weights when it computes the block. For models that do not fit otherwise.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='mmgcvit.FSDPStrategy',
    model_wrapper=dict(auto_wrap_policy='mmgcvit.wrap_blocks'),
    state_dict_cfg='full',  # checkpoints as of any other training, written by the first process
)
