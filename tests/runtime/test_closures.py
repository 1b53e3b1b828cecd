import pytest

from weft.runtime import closures


def body(count: int):
    """A body that returns `count` results which name everything it was given."""

    def record(*inputs: str):
        text = "+".join(inputs)
        return text if count == 1 else tuple(f"{text}/{i}" for i in range(count))

    return record


@pytest.mark.parametrize("num_inputs", range(1, 8))
@pytest.mark.parametrize("num_outputs", range(1, 6))
def test_any_arity_reads_in_order_and_stores_in_order(num_inputs, num_outputs):
    inputs = list(reversed(range(num_inputs)))
    outputs = list(range(num_inputs, num_inputs + num_outputs))
    frame = [chr(ord("a") + i) for i in range(num_inputs)] + [None] * num_outputs
    closures.run(body(num_outputs), inputs, outputs)(frame)
    expected = body(num_outputs)(*(frame[i] for i in inputs))
    assert frame[num_inputs:] == ([expected] if num_outputs == 1 else list(expected))


@pytest.mark.parametrize("num_inputs", range(1, 5))
def test_a_value_read_twice_is_passed_twice(num_inputs):
    frame = ["a", None]
    closures.run(body(1), [0] * num_inputs, [1])(frame)
    assert frame[1] == "+".join("a" * num_inputs)


@pytest.mark.parametrize("num_outputs", [2, 3, 4])
def test_too_few_results_are_an_error(num_outputs):
    task = closures.run(
        body(num_outputs - 1) if num_outputs > 2 else body(3), [0], range(num_outputs)
    )
    with pytest.raises(ValueError, match="unpack|zip"):
        task(["a", *[None] * num_outputs])


@pytest.mark.parametrize("slots", [[1], [1, 3], [0, 2, 3], [0, 1, 2, 3]])
def test_free_clears_its_slots_and_no_other(slots):
    frame = list("abcd")
    closures.free(slots)(frame)
    assert [frame[i] is None for i in range(4)] == [i in slots for i in range(4)]


def test_wait_puts_the_result_where_the_handle_was():
    class Handle:
        def wait(self) -> str:
            return "arrived"

    frame = ["x", Handle()]
    closures.wait(1)(frame)
    assert frame == ["x", "arrived"]
