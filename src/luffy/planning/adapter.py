"""What an adapter changes in a plan: which weights are trained, what the frozen base takes, what its layers keep.

Layers keep less beside frozen weights, since these have no gradient: of the inputs of matrices those that an adapter
reads, and of norms no result before their weight. Each adapter reads a copy of its own where the input has another
type than the adapter, which is float32 at least, or where dropout makes one.
"""

from __future__ import annotations

from luffy.config import Config
from luffy.planning.shape import Matrix, ModelShape

# bytes of a weight in NormalFloat4: half a byte; a scale of a byte for 64 of them; a float32 for 256 scales
BYTES_4_BITS = 1 / 2 + 1 / 64 + 4 / (64 * 256)


def adapted_matrices(shape: ModelShape, config: Config) -> tuple[Matrix, ...]:
    """The matrices of a layer that get an adapter; all where the recipe names none, or none that is known here."""
    if config.adapter.rank is None:
        return ()
    wanted = {name.rpartition(".")[2] for name in config.adapter.targets}
    found = tuple(matrix for matrix in shape.matrices if matrix.name in wanted)
    return found or shape.matrices


def adapter_parameters(shape: ModelShape, config: Config) -> int:
    """Two matrices beside each adapted one: rank rows of its inputs, rank columns of its outputs."""
    rank = config.adapter.rank or 0
    return shape.layers * sum(rank * (matrix.inputs + matrix.outputs) for matrix in adapted_matrices(shape, config))


def trained_parameters(shape: ModelShape, config: Config) -> int:
    """What has gradients and moments: the adapter's, or all where there is none."""
    return shape.parameters if config.adapter.rank is None else adapter_parameters(shape, config)


def trained_size(config: Config, size: int) -> int:
    """Bytes of a trained weight: a base in half precision is adapted in float32. size: of the base's."""
    return size if config.adapter.rank is None else max(size, 4)


def packed_parameters(shape: ModelShape, config: Config) -> int:
    """Weights that are held in 4 bits: the matrices of all layers, or none."""
    if config.adapter.quantize is None:
        return 0
    return shape.layers * sum(matrix.inputs * matrix.outputs for matrix in shape.matrices)


def held_bytes(shape: ModelShape, config: Config, size: int) -> float:
    """Of all weights of the policy, its adapter included. size: of a weight that is not packed."""
    packed = packed_parameters(shape, config)
    adapter = adapter_parameters(shape, config) * trained_size(config, size)
    return (shape.parameters - packed) * size + packed * BYTES_4_BITS + adapter


def unpacked_bytes(shape: ModelShape, config: Config, computed: int) -> float:
    """Of the largest matrix of 4 bits while it is multiplied: one at a time is dequantised."""
    if config.adapter.quantize is None:
        return 0.0
    return float(max(matrix.inputs * matrix.outputs for matrix in shape.matrices) * computed)


def kept_beside_frozen(
    shape: ModelShape, config: Config, repeats: float, computed: int, *, mixed: bool, gpu: bool = False
) -> float:
    """Numbers that one layer keeps of a token, as `kept_a_token` counts them, where only its adapter is trained.

    computed: bytes of such a number. mixed: whether products are bfloat16 beside float32 weights. Of narrow numbers
    norms keep their input in float32, and so do an adapter that is not mixed, and attention on a CPU.
    """
    matrices = adapted_matrices(shape, config)
    wide = max(1.0, 4 / computed)
    kept = 2 * shape.width * wide + (3 if shape.gated else 4) * shape.inner  # residuals; steps of the feed-forward part
    kept += (shape.attention_width + shape.key_value_width) * 2 * repeats * (1 if gpu else wide)
    own = 1 if mixed else wide
    kept += len(matrices) * (config.adapter.rank or 0) * own
    if config.adapter.dropout:
        return kept + 2 * own * sum(matrix.inputs for matrix in matrices)  # the input after it, and what it dropped
    if computed < 4:
        return kept + own * sum(matrix.inputs for matrix in matrices)
    shared = {matrix.reads: matrix.inputs for matrix in matrices}  # those that read one tensor keep it once
    return kept + sum(shared.values())
