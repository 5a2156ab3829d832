"""Signal handlers only set a flag; the training loop checks it between steps."""

import signal
import time
from dataclasses import dataclass
from types import FrameType

# Schedulers send SIGUSR1 or SIGUSR2 before they end a job.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class StopFlag:
    """A flag that a signal or the clock raises. Call it to ask whether it is raised."""

    # Seconds since the epoch.
    leave_at: float | None = None
    raised: bool = False

    def catch_signals(self) -> None:
        """Let the stop signals raise the flag, and do nothing else."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._raise)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.raised = True

    def __call__(self) -> bool:
        return self.raised or (self.leave_at is not None and time.time() >= self.leave_at)
