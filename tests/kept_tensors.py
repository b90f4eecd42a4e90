"""What torch keeps of a forward pass for its backward pass."""

import torch

from luffy.policy import Scorer


def kept_bytes(model, tokens):
    """Of the model's layers, for a row of so many tokens; weights are not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.is_floating_point():
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    scorer = Scorer(model, pad_id=0, chunk_elements=2**24)
    assert scorer.paths.packed
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        states, _ = scorer._states([[1]], [[2 + place % 30 for place in range(tokens)]])
        assert states.requires_grad
        return sum(kept.values())
