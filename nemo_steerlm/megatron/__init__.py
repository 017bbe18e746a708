"""NeMo's Megatron GPT model: layers, attention, packing, LoRA, conversion both ways, and compatibility without CUDA or apex."""
