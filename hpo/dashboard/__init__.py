"""The studies in a browser: optuna-dashboard on our database, made cheap to leave open, guarded, and told what a lab wants to see."""
