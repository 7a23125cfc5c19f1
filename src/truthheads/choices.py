"""The values that a setting may take, named once for the command line and for Python. Importing this loads nothing."""

from typing import Literal

ScoreMethod = Literal["probe", "attribution", "evidence"]
"""How heads are scored."""

Probe = Literal["newton", "paper"]
"""Which solver fits the linear probes."""

Folds = Literal["grouped", "paper"]
"""How rows are assigned to cross-validation folds."""

Position = Literal["answer", "question"]
"""Whose last token's attention is shown."""

Site = Literal["z", "output"]
"""What a factor scales. ``z``: a head's slice of the output projection's input. ``output``: a block of the projection's
output, as wide as its share of the heads; block i is not head i, since the projection has mixed all heads (this is the
gate of the released code)."""

Norm = Literal["centred", "minmax", "signed"]
"""How scores become distances from a factor of 1."""

Control = Literal["constant", "shuffled", "random"]
"""What a control gate keeps of the gate it stands beside."""

BaselineName = Literal["prompt", "cad"]
"""What a user could do without changing the model: an instruction to use the context alone, context-aware decoding."""

CAD_ALPHA = 0.5
"""Weight of what the context adds in context-aware decoding, as published for question answering."""

TuneMethod = Literal["grid", "learn"]
"""How a gate is found."""

ExportFormat = Literal["adapter", "checkpoint", "gguf"]
"""What an export writes."""

Generated = Literal["text", "scenes"]
"""What can be generated."""

Split = Literal["train", "dev", "test"]
"""Which part of the generators' names, facts and seeds."""

PairStrategy = Literal["closed-book", "swap", "both"]
"""Where the untruthful answer of a pair comes from."""
