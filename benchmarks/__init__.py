"""Benchmarks: layers, whole networks, many sizes and memory, beside torch, its compiler, onnxruntime, OpenVINO, cuDNN.

python -m benchmarks conv2d --filter r18 --batch 1      also: python -m pyconv bench conv2d ...
python -m benchmarks all                                every line of runs.txt
python -m benchmarks report                             the tables of the README, from the last runs

README.md of this folder says how a number is made.
"""
