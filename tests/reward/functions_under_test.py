"""Reward functions that worker processes can import; the completion's text says how to misbehave."""

import os
import signal
import time


def equal(completion_text, answer):
    return completion_text == answer


def misbehaving(completion_text, answer):
    match completion_text:
        case "hang":
            while True:
                pass
        case "hang in C":
            return 9**9**9 == 0
        case "exit":
            os._exit(3)
        case "exit as if all was well":
            os._exit(0)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise ValueError("no such answer")
        case "sys.exit":
            raise SystemExit(2)
        case "eat memory":
            return bytearray(64 * 2**30) == b""
        case "eat memory slowly":
            taken = [bytearray(2**20) for _ in range(4096)]
            return len(taken) == 0
        case "eat memory and hide it":
            try:
                misbehaving("eat memory slowly", answer)
            except MemoryError:
                return False
        case "take 100 MiB":
            return len(bytearray(100 * 2**20)) == 0
        case "graded":
            return 0.3
        case "nothing":
            return None
    return completion_text == answer


def slow(completion_text, answer):
    time.sleep(0.1)
    return completion_text == answer


def loaded_modules(completion_text, answer):
    import sys

    return completion_text not in sys.modules


not_a_function = 3
