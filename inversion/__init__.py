"""Teacher in, synthetic images out. Needs torch, timm, numpy and safetensors, nothing else."""
