"""From a raw pool to balanced shards. No torch. In the order of the flow:

pool                 pool_tar, pool_parquet (pool_columns), pool_wat (wat_page); pair_keys, hints
language of captions language_id: fasttext_model, letters, word_lists, hint_languages, lingua_cascade; loops in fasttext_kernel, evidence_kernel
matching             match: automaton, with its loops in automaton_kernels; match_stage -> matched
duplicates           image_hash, hash_stage; hamming, duplicates, duplicates_stage
balance              balance (the rules), balance_sums, balance_stage
packing              pack_plan, pack_stage; filters (faces is one); urls_stage for pools without images
looking at it        report, report_figure; verify, verify_shard
for all              commands (`mc2 curate`), compiled (numba), plugin (classes named in YAML)
"""
