"""What tests of parallel programs need: ranks, agreement, tolerances, routing with a chosen
imbalance.
"""
