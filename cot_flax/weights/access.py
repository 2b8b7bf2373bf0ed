"""How parameters may be fetched and read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Access:
    """What reading a checkpoint may do.

    Attributes:
        allow_pickle: read PyTorch's `.bin` files, by a reader that makes tensors and nothing else.
        local_files_only: take what the Hugging Face hub holds from its cache; ask no network.
    """

    allow_pickle: bool = False
    local_files_only: bool = False
