"""One loop for all stages under DeepSpeed; the only room that imports deepspeed and wandb."""
