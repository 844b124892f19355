"""How many streams one host is worth: up while that brings bytes, down when it costs them; pure.

Whoever calls says what time it is and what came, in bytes per second. Twice as many are tried,
until what comes rises no more, and then half as many more. They are kept if they bring enough more
for their number, and more are tried at once; else they are given back, and it is a while until the
next try. A host that brings much less although nothing failed is asked by half as many, and half of
these, until that helps: it gets more only after a long while, and a longer one each time that was
wrong. If nothing helps it was not the streams, and they come back. When nothing at all comes it is
the network, and says nothing.
"""

from __future__ import annotations

from math import ceil, inf

SAMPLE_S = 0.25
SETTLE_SAMPLES = 1  # after a change: connections are being made, or wind down
TRIAL_SAMPLES = 2
RISING = 1.1  # from one sample to the next: connections get up to speed
RISING_SAMPLES = 8  # as long at most
COLLAPSE_SAMPLES = 6
GAIN = 1.05  # a level that is not so much higher is not worth a trial
WORTH = 0.2  # of what more streams would bring if each brought as much: else they are too many
STEP = 2.0
STEP_LATE = 1.5  # once more streams bring less than in proportion
LINEAR = 0.75  # of the same: then there may be many more
COLLAPSED = 0.5
FADE = 0.99  # how fast less becomes usual, per sample
RELIEF = 1.5
HARM = 0.7
PROBE_FIRST_S = 15.0  # doubled at each try in vain
PROBE_MAX_S = 600.0
REFUSED_S = 3600.0  # for so long a refusal is remembered
CEILING_FIRST_S = 300.0  # how long a ceiling holds; doubled each time
CEILING_MAX_S = 7200.0
SILENT = 1e-4  # of what is usual: less than any crowd leaves of it
THROTTLE_DEAF_S = 1.0  # refusals of one moment count once


class Climb:
    """The level of one host, which is remembered as long as this lives."""

    def __init__(self, start: int, streams_max: int) -> None:
        self.level = min(start, streams_max)
        self.ceiling = streams_max
        """More have been too many, lately."""
        self._streams_max = streams_max
        self._ceiling_until = inf
        self._ceiling_s = CEILING_FIRST_S
        self._samples: list[float] = []  # at this level, while all its streams were busy
        self._trial: tuple[int, float] | None = None  # the level below, and what that brought
        self._collapse: tuple[int, float] | None = None  # the level before, and what it fell to
        self._step = STEP
        self._usual = 0.0  # what this level brings
        self._probe_at = -inf
        self._probe_s = PROBE_FIRST_S
        self._refused_at = -inf
        self._refused_s = PROBE_FIRST_S  # what a refusal costs, whatever went well in between
        self._deaf_until = -inf

    def __repr__(self) -> str:
        return f"<Climb [{self.level} of {self.ceiling}]>"

    @property
    def safe(self) -> int:
        """The last level that was found good: not one that is on trial, or a cure that is."""
        doubted = self._trial or self._collapse
        return self.level if doubted is None else doubted[0]

    def throttled(self, now: float) -> None:
        """Be refused for having asked too much."""
        if now < self._deaf_until:
            return
        self._deaf_until = now + THROTTLE_DEAF_S
        if now >= self._refused_at + REFUSED_S:
            self._refused_s = PROBE_FIRST_S
        self._collapse = None
        self._wait(now)
        self._probe_at = max(self._probe_at, now + self._refused_s)
        self._refused_at, self._refused_s = now, min(2 * self._refused_s, PROBE_MAX_S)
        self._step = STEP_LATE
        self._change(max(1, self.level // 2))

    def sample(self, now: float, bytes_per_s: float, *, is_full: bool) -> None:
        """Take note of what came lately; *is_full*: from as many streams as the level allows."""
        if not is_full:
            self._samples.clear()  # they say nothing about the level
            return
        self._samples.append(bytes_per_s)
        if now >= self._ceiling_until:
            self.ceiling, self._ceiling_until = self._streams_max, inf
        if self._has_collapsed():
            self._fall(bytes_per_s)
        elif (found := self._found()) is not None:
            self._judge(now, found)
            del self._samples[:-COLLAPSE_SAMPLES]

    def leaving(self, streams: int, bytes_per_s: float) -> None:
        """Take note of what *streams* brought, while those above the level are on their way out.

        If so many bring enough again after a collapse, as many are judged as its cure, not fewer.
        """
        if self._collapse is None or streams <= self.level:
            return
        before, fallen_to = self._collapse
        if bytes_per_s > fallen_to * RELIEF:
            self.level = min(streams, before)
            self._samples.clear()

    def _found(self) -> float | None:
        """Return what the level brings, once that is clear."""
        settled = self._samples[SETTLE_SAMPLES:]
        if settled and self._trial is not None and self._is_linear(settled[-1], *self._trial):
            return settled[-1]
        if len(settled) < TRIAL_SAMPLES:
            return None
        if len(settled) < RISING_SAMPLES and settled[-1] > settled[-2] * RISING:
            return None
        return sum(settled[-TRIAL_SAMPLES:]) / TRIAL_SAMPLES

    def _is_linear(self, found: float, level: int, before: float) -> bool:
        return found >= before * self._gain(LINEAR, level)

    def _gain(self, part: float, level: int) -> float:
        """Return by how much more comes if what is above *level* brings that *part* of its share."""
        return 1 + part * (self.level / level - 1)

    def _has_collapsed(self) -> bool:
        last = self._samples[-COLLAPSE_SAMPLES:]
        if self.level == 1 or len(last) < COLLAPSE_SAMPLES:
            return False
        return min(last) > self._usual * SILENT and max(last) < self._usual * COLLAPSED

    def _fall(self, bytes_per_s: float) -> None:
        """Halve the level; `_relieve` will tell whether that was the reason."""
        before = self._trial[0] if self._trial is not None else self.level
        self._collapse = before, bytes_per_s
        self._change(max(1, min(before, self.level // 2)))

    def _judge(self, now: float, found: float) -> None:
        """Decide what becomes of a level that was just reached."""
        if self._collapse is not None:
            self._relieve(now, found, *self._collapse)
        elif self._trial is not None:
            self._tried(now, found, *self._trial)
        elif found > self._usual * COLLAPSED:
            self._probe(now, max(found, self._usual * FADE))

    def _tried(self, now: float, found: float, level: int, before: float) -> None:
        """Decide whether to keep more streams than *level*, which brought what was *before*."""
        if found < before * COLLAPSED:
            return  # too bad to be true, or a collapse: the next samples tell
        if found < before * self._gain(WORTH, level):
            if self._step > STEP_LATE:
                self._step = STEP_LATE
                self._try(level, before)
            else:
                self._wait(now)
                self._change(level, usual=before)
            return
        if self._is_linear(found, level, before):
            self._step = STEP
            found = max(found, before * self.level / level)  # connections may still speed up
        else:
            self._step = STEP_LATE
        self._trial = None
        self._probe_s = PROBE_FIRST_S
        self._probe(now, found)

    def _relieve(self, now: float, found: float, level: int, before: float) -> None:
        """Decide whether fewer streams are the cure for what *level* of them brought."""
        if found > before * RELIEF:
            if self.level < level:
                self.ceiling = self.level
                self._ceiling_until = now + self._ceiling_s
                self._ceiling_s = min(2 * self._ceiling_s, CEILING_MAX_S)
        elif self.level > 1 and found >= before * HARM:
            self._change(self.level // 2)
            return
        else:
            self._change(level)
        self._collapse = None
        self._usual = found
        self._wait(now)

    def _probe(self, now: float, found: float) -> None:
        """Try a higher level if there is one, and it is time to."""
        self._usual = found
        if now >= self._probe_at and self.level < self.ceiling:
            self._try(self.level, found)

    def _try(self, level: int, found: float) -> None:
        """Try more than *level*, which brings what is *found*."""
        self._trial = level, found
        self._samples.clear()
        higher = ceil(level * self._step)
        self.level = self.ceiling if higher * GAIN >= self.ceiling else higher

    def _change(self, level: int, *, usual: float = 0.0) -> None:
        self.level = level
        self._usual = usual
        self._trial = None
        self._samples.clear()

    def _wait(self, now: float) -> None:
        """Try no higher level for a while."""
        self._probe_at = now + self._probe_s
        self._probe_s = min(2 * self._probe_s, PROBE_MAX_S)
