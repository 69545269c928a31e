"""The Spark evaluator beside the evaluator in one process: equal to the bit, and what each takes."""
