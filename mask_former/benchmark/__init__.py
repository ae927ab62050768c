"""What a model costs: parameters, operations, time by stage, memory; beside plain ways to do the same."""
