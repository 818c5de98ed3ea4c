"""Benchmarks: real layers and whole training steps, beside torch.

python -m benchmarks conv2d --tier core --threads 2       one JSON in benchmarks/results
python -m benchmarks steps
python -m benchmarks report                               the table of the README, from the last runs
"""
