"""What is to befall which calls on one node."""

from __future__ import annotations

import fnmatch
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Rule:
    """Calls that fail, or wait until it is over."""

    call: str
    path: str
    code: int
    """Of the error; 0 if it stalls."""
    done: bool
    met: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def befalls(self, call: str, arguments: Iterable[object], *, done: bool) -> bool:
        paths = [one for one in arguments if isinstance(one, str)]
        is_such = (call, done) == (self.call, self.done)
        return is_such and any(fnmatch.fnmatch(path, self.path) for path in paths)

    def befall(self) -> None:
        self.met += 1
        if self.code == 0:
            self.over.wait()
        else:
            raise OSError(self.code, os.strerror(self.code))


class Rules:
    """All that are in force."""

    def __init__(self) -> None:
        self._rules: dict[int, Rule] = {}
        self._ids = itertools.count()

    def begin(self, call: str, path: str, code: int, done: bool) -> int:
        id = next(self._ids)
        self._rules[id] = Rule(call, path, code, done)
        return id

    def met(self, id: int) -> int:
        return self._rules[id].met

    def end(self, id: int) -> None:
        self._rules.pop(id).over.set()

    def governed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Have the rules befall calls of *method*, before or after it."""

        @functools.wraps(method)
        def call(operations: object, *arguments: Any) -> Any:
            self._apply(method.__name__, arguments, done=False)
            result = method(operations, *arguments)
            self._apply(method.__name__, arguments, done=True)
            return result

        return call

    def _apply(self, call: str, arguments: Sequence[object], *, done: bool) -> None:
        for rule in list(self._rules.values()):
            if rule.befalls(call, arguments, done=done):
                rule.befall()
