"""Benchmarks anyone can run: every contestant in one process, checked before it is timed.

cases      operators, shapes, inputs, float64 truth, FLOPs and the least memory traffic
peers      who else computes them, and how each is called: here, on a CPU, on a GPU
checks     values and gradients against the float64 reference
timing     rounds in which all take turns; clocks of CPU and GPU; CUDA graphs; bandwidth
run        the whole: one result after another
claims     what the table is to show, judged
table      terminal, Markdown, JSON
"""
