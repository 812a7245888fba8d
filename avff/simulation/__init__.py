"""How a stage would run on 1 to 1000 GPUs: formulas over a config, a cluster and measured costs, and what checks them."""
