"""The configuration of a run: typed, validated before anything is loaded, and explained by `luffy config`.

A recipe is a YAML file with the keys of `Config`. Overrides are `dotted.key=value`. What `methods:` says for the chosen
method is applied between the two, so that each method of a comparison runs with its own tuned settings:

    recipe  <  methods.<method> of the recipe  <  key=value on the command line
"""

from luffy.config.keys import describe, differing_keys, flatten, known_keys, shown_as_differing
from luffy.config.names import nearest
from luffy.config.reading import load_config, parse_override
from luffy.config.recipe import Config, completion_format
from luffy.config.sections import (
    AUTOCAST_FROM,
    MINIATURE,
    AdapterConfig,
    ColumnsConfig,
    DataConfig,
    MiniatureConfig,
    PolicyConfig,
    RewardConfig,
)

__all__ = [
    "AUTOCAST_FROM",
    "MINIATURE",
    "AdapterConfig",
    "ColumnsConfig",
    "Config",
    "DataConfig",
    "MiniatureConfig",
    "PolicyConfig",
    "RewardConfig",
    "completion_format",
    "describe",
    "differing_keys",
    "flatten",
    "known_keys",
    "load_config",
    "nearest",
    "parse_override",
    "shown_as_differing",
]
