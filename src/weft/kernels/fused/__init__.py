"""Fused bodies: one kernel for a sequence of operators, whose meaning is that sequence.

Rows that no value holds are read where their tokens lie, and what a reader would compute again from
a product is computed while the product is in registers. As in `triton`: no host synchronisation, no
float atomics but one addition an element, the same bits every time.
"""
