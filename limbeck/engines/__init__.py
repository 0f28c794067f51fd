"""Who writes the traces. An engine is a file with `connect`: `worked`, `local`, `openai`, `vllm`.

`sampling` is what every use of an engine shares; `journaled` and `budget` serve those that cost
money, `http/` those that are asked over HTTP, `vllm_server/` starts and proves a vLLM server.
`local_engine` writes with a model here: `drafts` are its texts in the making, `pool` the rows that
write together, `draw` the choice of tokens, `decoder/` the model itself; `foreign` is for
architectures that the decoder does not know.
"""
