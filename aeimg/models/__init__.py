"""One network per file: a frozen config dataclass and a module, nothing else."""
