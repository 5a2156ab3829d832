"""Signal handlers only set a flag; the training loop checks it between steps."""

import signal
import time
from dataclasses import dataclass
from types import FrameType

# SIGUSR1 and SIGUSR2: from schedulers before they end a job.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class StopFlag:
    """Set by a signal or by the clock, read between steps. The handler does nothing else."""

    leave_at: float | None = None  # seconds since the epoch
    raised: bool = False

    def catch_signals(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._raise)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.raised = True

    def __call__(self) -> bool:
        return self.raised or (self.leave_at is not None and time.time() >= self.leave_at)
