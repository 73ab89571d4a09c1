"""How different clients are, in their texts, gradients and models, and how training pulls them
apart (docs/diagnostics.md)."""
