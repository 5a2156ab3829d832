"""How many trainings share a device: measured, not guessed.

Another training is started for as long as the device's total step rate grows by GAIN and its
memory has room for one more. A training that does not pay off hands its trial back. At the
reference's batch size a GRU mostly waits for its own time steps, so a large GPU has room for more.
"""

import time
from dataclasses import dataclass, field

# The smallest growth of the total step rate for which another training pays off.
GAIN = 1.1
# How much free memory another training needs, as a multiple of what one takes.
HEADROOM = 1.2
# How long one measurement takes. It begins when every training on the device has shown a step.
WINDOW_SECONDS = 60.0


@dataclass
class Sharing:
    """The trainings of one device. Call `look` again and again: it says what to change."""

    # Free bytes before the first training.
    free_alone: int
    count: int = 1
    settled: bool = False
    # Steps per second of the whole device with 1, 2, ... trainings.
    rates: list[float] = field(default_factory=list)
    # The bytes that one training takes.
    taken_by_one: int = 0
    # The clock and the steps at the beginning of the measurement.
    _since: tuple[float, int] | None = None

    def look(self, running: int, steps: int, free: int, now: float | None = None) -> int:
        """Return how many trainings to add (1) or to end (-1), or 0.

        running: how many trainings have shown a step. steps: the steps that all trainings have ever
        done on this device. free: its free bytes. now: seconds of a monotonic clock.
        """
        if now is None:
            now = time.monotonic()
        if self.settled:
            return 0
        if self._since is None:
            if running >= self.count:
                self._since = (now, steps)
            return 0
        # Trials that end meanwhile, and the claims of the next ones, are part of the pace.
        since, steps_before = self._since
        # A training went back to an earlier step.
        if steps < steps_before:
            return self.restart()
        if now - since < WINDOW_SECONDS:
            return 0
        self._since = None
        self.rates.append((steps - steps_before) / (now - since))
        return self._decide(free)

    def _decide(self, free: int) -> int:
        """Compare the newest rate with the one before."""
        if self.count == 1:
            self.taken_by_one = self.free_alone - free
        elif self.rates[-1] < GAIN * self.rates[-2]:
            return self._settle(self.count - 1)
        if free < HEADROOM * self.taken_by_one:
            return self._settle(self.count)
        self.count += 1
        return 1

    def restart(self) -> int:
        """Discard the measurement, because a training left or went back. Returns 0: no change."""
        self._since = None
        return 0

    def out_of_memory(self) -> None:
        """A training has left because the device ran out of memory."""
        self._settle(max(1, self.count - 1))

    def _settle(self, count: int) -> int:
        change = count - self.count
        self.count = count
        self.settled = True
        return change

    def __str__(self) -> str:
        rates = [f"{count}: {rate:.2f}" for count, rate in enumerate(self.rates, 1)]
        measured = ", ".join(rates) or "not measured yet"
        so_far = "" if self.settled else " so far"
        return f"{self.count} at once{so_far} (total steps/s by number of trainings: {measured})"
