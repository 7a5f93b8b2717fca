"""Puts the two lists of `not_applicable` on a class of tests."""

import functools
from contextlib import nullcontext

import pytest
from not_applicable import NOT_APPLICABLE, OPEN


def verdict_of(name: str, *lists: str) -> tuple[str, str]:
    """`(skip | open | run, reason)` for one test."""
    for group in lists:
        if name in NOT_APPLICABLE.get(group, {}):
            return "skip", NOT_APPLICABLE[group][name]
        if name in OPEN.get(group, {}):
            return "open", OPEN[group][name]
    return "run", ""


def apply_verdicts(*lists: str):
    """Skips what does not apply, and expects what is open to fail: a test that passes again must leave the list."""

    def decorate(cls):
        tests = [name for name in dir(cls) if name.startswith("test_") and callable(getattr(cls, name))]
        for name in tests:
            verdict, reason = verdict_of(name, *lists)
            if verdict == "run":
                continue
            method = getattr(cls, name)

            @functools.wraps(method)
            def marked(self, *args, _method=method, **kwargs):
                self.subTest = lambda *a, **k: nullcontext()  # the first failure is the test's
                return _method(self, *args, **kwargs)

            mark = pytest.mark.skip(reason=reason) if verdict == "skip" else pytest.mark.xfail(reason=reason, strict=True)
            setattr(cls, name, mark(marked))
        cls.known_tests = tests
        return cls

    return decorate
