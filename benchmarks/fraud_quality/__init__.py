"""How good the fraud network is: against tuned XGBoost, on the same features and days."""
