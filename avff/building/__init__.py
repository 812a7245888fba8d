"""Sources to shards: joins `media` and `data`; `tools/make_shards.py` and `avff predict` both make samples here."""
