"""Jobs over the archive. So far one: `batch_scorer.replay` computes recorded decisions again, bit for bit."""
