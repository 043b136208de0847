"""Names of a library that have other values for a while."""

import math
import types

import pytest

from fracray.runtime.replaced import replaced


class Counter:
    @staticmethod
    def count(number):
        return number

    @classmethod
    def own_name(cls):
        return cls.__name__


def test_names_of_modules_and_classes_have_other_values_in_the_block_only():
    module = types.ModuleType("module")
    module.LIMIT = 30
    with replaced(module, LIMIT=60), replaced(Counter, count=staticmethod(lambda _: 0), own_name=classmethod(repr)):
        assert (module.LIMIT, Counter.count(5), Counter().count(5)) == (60, 0, 0)
        assert Counter.own_name() == repr(Counter)
    assert (module.LIMIT, Counter.count(5), Counter().count(5), Counter().own_name()) == (30, 5, 5, "Counter")


def test_also_after_an_error():
    def fails():
        with replaced(math, tau=0.0):
            return 1 / math.tau

    with pytest.raises(ZeroDivisionError):
        fails()
    assert math.tau == 2 * math.pi


def test_a_name_that_the_library_no_longer_has_is_an_error():
    with pytest.raises(KeyError, match="phi"), replaced(math, tau=1.0, phi=1.6):
        pass
    assert math.tau == 2 * math.pi
