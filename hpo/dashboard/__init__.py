"""The studies in a browser: optuna-dashboard, cheap to leave open, guarded, with a lab's notes."""
