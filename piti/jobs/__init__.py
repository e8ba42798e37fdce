"""What Ray runs: shard, degrade, train, sample, score. `python -m piti.jobs KIND --spec URI`."""
