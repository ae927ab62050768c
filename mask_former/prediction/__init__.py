"""What `Predictor` is made of: what goes in, rules, results, drawings and files."""
