"""One network per file, a frozen config dataclass and a module; and `layers`, the list that they keep layers in."""
