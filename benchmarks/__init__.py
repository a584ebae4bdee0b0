"""What a page fault costs, and what it buys: every figure of the README comes from here.

    python -m benchmarks                 all of them
    python -m benchmarks fault_cost      one
    python -m benchmarks --list          what there is

How a figure is made is told in ``benchmarks/README.md``.
"""
