"""Tests of prefetching in a background thread."""

import threading

import pytest

from ptq4vm.deploy.ahead import ahead


def test_items_come_in_order():
    assert list(ahead(range(20))) == list(range(20))


def test_items_are_made_in_another_thread_and_few_wait():
    made, threads = [], set()

    def items():
        for number in range(10):
            threads.add(threading.get_ident())
            made.append(number)
            yield number

    stream = ahead(items(), depth=2)
    for number in stream:
        assert len(made) <= number + 1 + 2 + 1, "one in use, two waiting, one being made"
    assert threads
    assert threading.get_ident() not in threads


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        raise ValueError("broken")

    stream = ahead(items())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        next(stream)


def test_whoever_stops_early_ends_the_thread_and_closes_the_source():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    before = threading.active_count()
    stream = ahead(items(), depth=1)
    next(stream)
    stream.close()
    assert closed.is_set()
    assert threading.active_count() == before
