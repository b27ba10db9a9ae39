"""Federated LoRA fine-tuning: campaigns, privacy and the round protocol, without orchestration."""
