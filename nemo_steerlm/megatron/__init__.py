"""The heavy room: NeMo models, Megatron parallelism, training. Imported only inside commands that train or serve a ``.nemo``."""
