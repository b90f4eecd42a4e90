"""What vLLM calls in each of its processes where this package is installed (entry point `vllm.general_plugins`)."""

BACKEND = "luffy"  # the name of our receiver of weights among vLLM's


def register() -> None:
    """Make our receiver of weights one of vLLM's backends: `--weight-transfer-config '{"backend": "luffy"}'`."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    try:
        WeightTransferEngineFactory.register_engine(BACKEND, "luffy.rollout.vllm_receiver", "Receiver")
    except ValueError:
        return  # it is: vLLM may load its plugins several times in one process
