"""How many programs a launch has and how wide their blocks are.

Triton's functions of these names may be called in kernels too, and cost the host a microsecond or
two for it; these are the arithmetic alone.
"""


def cdiv(count: int, block: int) -> int:
    """Returns how many blocks hold so many elements.

    Example:
        >>> cdiv(9, 4), cdiv(8, 4), cdiv(0, 4)
        (3, 2, 0)
    """
    return -(-count // block)


def next_power_of_2(count: int) -> int:
    """Returns the smallest power of two that is not below a positive number.

    Example:
        >>> next_power_of_2(1), next_power_of_2(5), next_power_of_2(8)
        (1, 8, 8)
    """
    return 1 << (count - 1).bit_length()
