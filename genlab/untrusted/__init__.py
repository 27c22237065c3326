"""Defense against what other people send: files, texts, configs and states are only data.

- `files` opens files that may come from outside: regular files of bounded size.
- `text` makes their texts safe for terminals, Markdown and CSV.
- `configs` is the one check of every config that was not typed on this command line.
- `states` checks the tensors and numbers of a checkpoint against what they replace.

docs/untrusted_files.md says what is promised.
"""
