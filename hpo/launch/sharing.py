"""How many trainings share a device: tried, not guessed.

One more is started as long as the device's total step rate grows by GAIN and there is memory for another; the one that
did not pay hands its trial back. A GRU at the reference's batch size waits for its own time steps most of the time, which
leaves a large GPU room for others.
"""

import time
from dataclasses import dataclass, field

GAIN = 1.1  # the total step rate with one more, at least, over that without
HEADROOM = 1.2  # free memory over what one training takes, for another to be started
WINDOW_SECONDS = 60.0  # of one measurement; it begins when every training here has shown a step


@dataclass
class Sharing:
    """One device. `look` is asked again and again and says what to change."""

    free_alone: int  # bytes, before the first training
    count: int = 1
    settled: bool = False
    rates: list[float] = field(default_factory=list)  # steps/s with 1, 2, ... trainings
    taken_by_one: int = 0  # bytes
    _since: tuple[float, int] | None = None  # clock and steps at the begin of the measurement

    def look(self, running: int, steps: int, free: int, now: float | None = None) -> int:
        """running: trainings that have shown a step; steps: done on this device, by all and ever; free: bytes.

        Returns how many trainings to add (1) or to end (-1), or 0.
        """
        now = time.monotonic() if now is None else now
        if self.settled:
            return 0
        if self._since is None:
            if running >= self.count:
                self._since = now, steps
            return 0
        begin, before = (
            self._since
        )  # a trial that ends meanwhile, and the claim of the next one, are part of the pace
        if steps < before:  # one began again at an earlier step
            return self.restart()
        if now - begin < WINDOW_SECONDS:
            return 0
        self._since = None
        self.rates.append((steps - before) / (now - begin))
        if self.count == 1:
            self.taken_by_one = self.free_alone - free
        if self.count > 1 and self.rates[-1] < GAIN * self.rates[-2]:
            return self._settle(self.count - 1)
        if free < HEADROOM * self.taken_by_one:
            return self._settle(self.count)
        self.count += 1
        return 1

    def restart(self) -> int:
        """Begin the measurement anew: a training left or went back meanwhile, which says nothing about sharing."""
        self._since = None
        return 0

    def out_of_memory(self) -> None:
        """One training left because its device had no more memory."""
        self._settle(max(1, self.count - 1))

    def _settle(self, count: int) -> int:
        change, self.count, self.settled = count - self.count, count, True
        return change

    def __str__(self) -> str:
        rates = ", ".join(f"{number}: {rate:.2f}" for number, rate in enumerate(self.rates, 1))
        return f"{self.count} at once{'' if self.settled else ' so far'} (steps/s in all, by how many: {rates or 'not measured yet'})"
