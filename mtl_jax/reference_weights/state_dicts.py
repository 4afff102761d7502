"""State dicts of PyTorch code in one form, however a program has saved them."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

# MTL, FEAT, DeepEMD: params; RFS: model; MetaOptNet: embedding; Meta-Baseline: model_sd; trainers: the others.
WRAPPERS = ("params", "state_dict", "model_state_dict", "model", "model_sd", "embedding")
COUNTER = "num_batches_tracked"  # PyTorch's own, of no use here; files of PyTorch 0.4.0 have none
_LAYER = re.compile(r"(.*?)layer\d+\.(\d+\.)?(conv|bn|downsample)")
_DEPTH = 4  # of wrappers in wrappers; a pickle can hold itself


def unwrapped(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a network by their names: no wrapper around them, no DataParallel's 'module.', no counters."""
    for _ in range(_DEPTH):
        held = [mapping[name] for name in WRAPPERS if isinstance(mapping.get(name), Mapping)]
        mapping = held[0] if held else mapping
    named = {".".join(part for part in str(key).split(".") if part != "module"): key for key in mapping}
    return {name: mapping[key] for name, key in named.items() if not name.endswith(COUNTER)}


def prefix_of(state: Mapping[str, Any]) -> str:
    """What stands before 'layer1.' in the names of a ResNet's arrays, such as 'encoder.'; '' where there is none."""
    found = Counter(match[1] for match in map(_LAYER.match, state) if match)
    return found.most_common(1)[0][0] if found else ""
