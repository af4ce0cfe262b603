"""The parts models are built from: attention, its record, blocks and embeddings."""
