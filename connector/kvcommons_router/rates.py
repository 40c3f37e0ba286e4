"""What prefilling costs on each replica, learnt from the time to first token of what we sent there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvcommons_router.picker import Prefill

FORGET: Final = 0.99  # weight of the past at each sample: about the last hundred count
SAMPLES_MIN: Final = 4
SHARE_MIN: Final = 0.1  # of the time that is put down to the tokens, where samples say nothing
DOUBTED: Final = 2.0  # how many times as long as expected is too long
CORRECTED: Final = 0.1  # how much of what was found then is added
CHAIN_SECONDS: Final = 0.05  # of prefills one after the other that make a sample
TOKEN_SECONDS_MIN: Final = 1e-7
TOKEN_SECONDS_MAX: Final = 1.0
BASE_SECONDS_MAX: Final = 10.0
BYTES_PER_TOKEN_MIN: Final = 0.5
BYTES_PER_TOKEN_MAX: Final = 64.0


class PrefillLearner:
    """A line through (uncached tokens, seconds), the past fading; it writes into the `Prefill` that the picker reads.

    A request that waited behind nothing tells how long it took itself; so does one that was there already when the one before it
    was done, from then on. Engines prefill short prompts together, so those are taken as one sample until some time has gone by. Of what
    waited behind others, and nobody saw when they were done, only this is taken: where it took far longer than the line says, the
    line is too flat, and is made steeper. Else a replica that was once judged too quick would get everything.
    """

    __slots__ = (
        "_behind",
        "_behind_seconds",
        "_behind_tokens",
        "_chained",
        "_chained_seconds",
        "_chained_tokens",
        "_count",
        "_sx",
        "_sxx",
        "_sxy",
        "_sy",
        "_weight",
        "prefill",
    )

    def __init__(self, prefill: Prefill) -> None:
        self.prefill = prefill
        self._weight = self._sx = self._sy = self._sxx = self._sxy = 0.0
        self._count = self._behind = 0
        self._behind_tokens = self._behind_seconds = 0.0
        self._chained = 0
        self._chained_tokens = self._chained_seconds = 0.0

    @property
    def taught(self) -> bool:
        """Whether there were samples enough to believe in."""
        return self._count >= SAMPLES_MIN

    def add(self, uncached: float, seconds: float, before: float = 0.0) -> None:
        """Takes one sample.

        :param before: tokens that were still to be prefilled there when the request came.
        """
        if seconds <= 0.0:
            return
        if before > 0.0:
            self._doubt(uncached + before, seconds)
            return
        self._weight = self._weight * FORGET + 1.0
        self._sx = self._sx * FORGET + uncached
        self._sy = self._sy * FORGET + seconds
        self._sxx = self._sxx * FORGET + uncached * uncached
        self._sxy = self._sxy * FORGET + uncached * seconds
        self._count += 1
        if self._count >= SAMPLES_MIN:
            self._fit()

    def add_next(self, uncached: float, seconds: float) -> None:
        """Takes one that was at the replica when the one before it was done.

        :param seconds: since then.
        """
        self._chained += 1
        self._chained_tokens += uncached
        self._chained_seconds += seconds
        if self._chained_seconds >= CHAIN_SECONDS:
            count, self._chained = self._chained, 0
            self.add(self._chained_tokens / count, self._chained_seconds / count)
            self._chained_tokens = self._chained_seconds = 0.0

    def _doubt(self, tokens: float, seconds: float) -> None:
        prefill = self.prefill
        if not prefill.known:  # who is busy from the first moment on is never alone: better a rough line than none
            self._behind += 1
            self._behind_tokens += tokens
            self._behind_seconds += seconds
            if self._behind >= SAMPLES_MIN:
                rate = self._behind_seconds / max(self._behind_tokens, 1.0)
                prefill.token_seconds = min(max(rate, TOKEN_SECONDS_MIN), TOKEN_SECONDS_MAX)
                prefill.known = True
            return
        found = (seconds - prefill.base_seconds) / max(tokens, 1.0)
        if found > DOUBTED * prefill.token_seconds:
            prefill.token_seconds = min(prefill.token_seconds + CORRECTED * found, TOKEN_SECONDS_MAX)

    def _fit(self) -> None:
        mean_x, mean_y = self._sx / self._weight, self._sy / self._weight
        spread = self._sxx / self._weight - mean_x * mean_x
        if spread > 1.0 and spread > 0.01 * mean_x * mean_x:
            slope = (self._sxy / self._weight - mean_x * mean_y) / spread
        else:  # all alike: no line to see, so the fixed part is kept and the rest is the tokens'
            slope = (mean_y - self.prefill.base_seconds) / max(mean_x, 1.0)
        if (
            slope <= TOKEN_SECONDS_MIN
        ):  # scattered samples: tokens are not free, else a queue of any length would seem to be short
            slope = max(SHARE_MIN * mean_y / max(mean_x, 1.0), TOKEN_SECONDS_MIN)
        slope = min(slope, TOKEN_SECONDS_MAX)
        self.prefill.known = True
        self.prefill.token_seconds = slope
        self.prefill.base_seconds = min(max(mean_y - slope * mean_x, 0.0), BASE_SECONDS_MAX)


def pool(into: Prefill, learnt: Sequence[Prefill]) -> None:
    """Takes what several routers have learnt of one replica: the mean of those that know anything."""
    known = [one for one in learnt if one.known]
    if known:
        into.token_seconds = sum([one.token_seconds for one in known]) / len(known)
        into.base_seconds = sum([one.base_seconds for one in known]) / len(known)
        into.known = True


class TokenRatio:
    """Bytes of text to a token, learnt from the counts that engines report; there is no tokenizer here."""

    __slots__ = ("bytes_per_token",)

    def __init__(self, bytes_per_token: float = 4.0) -> None:
        self.bytes_per_token = bytes_per_token

    def tokens(self, text_bytes: int) -> int:
        """How many tokens this much text makes, about; at least one."""
        return int(text_bytes / self.bytes_per_token) + 1

    def add(self, text_bytes: int, tokens: int) -> None:
        """Takes one engine's count; short prompts are mostly template and teach nothing."""
        if tokens < 32 or text_bytes < 64:
            return
        ratio = min(max(text_bytes / tokens, BYTES_PER_TOKEN_MIN), BYTES_PER_TOKEN_MAX)
        self.bytes_per_token += 0.05 * (ratio - self.bytes_per_token)
