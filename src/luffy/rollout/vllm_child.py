"""The process of a run's own vLLM server: `vllm serve`, and an eye on the run, whose end it does not outlive."""

import os
import runpy
import signal
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version

LOOK_EVERY = 1.0  # seconds


def _end_with(run: int) -> None:
    """End this process and all that it started once the run is no longer its parent."""
    while os.getppid() == run:
        time.sleep(LOOK_EVERY)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def main() -> None:
    """Arguments: the process id of the run, then those of `vllm serve`."""
    run, *arguments = sys.argv[1:]
    threading.Thread(target=_end_with, args=(int(run),), daemon=True).start()
    sys.argv = ["vllm", "serve", *arguments]
    serve()


def serve() -> None:
    """`vllm serve`; its command line does not start where vLLM is installed under another name, as its CPU build is."""
    try:
        version("vllm")
    except PackageNotFoundError:
        sys.argv = [sys.argv[0], "--model", *sys.argv[2:]]
        runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
    else:
        from vllm.entrypoints.cli.main import main as vllm_main

        vllm_main()


if __name__ == "__main__":
    main()
