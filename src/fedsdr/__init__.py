"""fedsdr: federated fine-tuning of language models on data that look nothing alike (FedSD,
FedSDR)."""

__version__ = "0.1.0"
