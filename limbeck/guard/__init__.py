"""What lies between a stranger's folder or file and the libraries that would open it. No torch.

Headers, names, sizes and keys are read here first, by code that allocates nothing on a file's
word; templates and tokenizers, which are programs, first run in a child process with limits on
time, memory and output. What is refused is a UserError with file and reason.
"""

from limbeck.guard.folders import (
    check_files,
    check_model_folder,
    check_tokenizer,
    read_configs,
)
from limbeck.guard.rows import check_parquet, check_regular, lines, parse_rows
from limbeck.guard.weights import SINGLE, num_bytes, num_elements
from limbeck.guard.worker import is_trusted, render, trust_template

__all__ = [
    "SINGLE",
    "check_files",
    "check_model_folder",
    "check_parquet",
    "check_regular",
    "check_tokenizer",
    "is_trusted",
    "lines",
    "num_bytes",
    "num_elements",
    "parse_rows",
    "read_configs",
    "render",
    "trust_template",
]
