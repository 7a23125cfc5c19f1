"""Whether the hub answers, asked once: its library tries every file again for 23 s where there is no network."""

import functools
import threading
import time

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

WITHIN = 5.0
"""Seconds until an answer has to be there."""

KEPT = 60.0
"""Seconds for which an answer, or its absence, is taken to hold."""


def hub_answers() -> bool:
    """Return whether the hub can be reached; False with ``HF_HUB_OFFLINE=1``. What is in the cache loads either way."""
    return _answers(huggingface_hub.constants.ENDPOINT, int(time.monotonic() // KEPT))


@functools.lru_cache(maxsize=1)
def _answers(url: str, _: int) -> bool:
    answered = threading.Event()

    def ask() -> None:
        try:
            huggingface_hub.get_hf_file_metadata(url, timeout=WITHIN)
        except HfHubHTTPError:
            pass  # an answer, though there is no such file
        except Exception:  # no network, a time limit, a proxy's refusal: each client has exceptions of its own
            return
        answered.set()

    # apart, since no client's time limit counts the look-up of the name
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(WITHIN)
    return answered.is_set()
