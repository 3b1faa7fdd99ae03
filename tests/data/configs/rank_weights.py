# Keeps the final weights of every process; tests/data/scripts has to be in PYTHONPATH.
custom_imports = dict(imports=['save_rank_weights'])
custom_hooks = [dict(type='SaveRankWeights')]
