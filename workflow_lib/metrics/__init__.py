"""Metrics of a model on a split, with bootstrap intervals: functions of arrays, which tasks share.

outputs     outputs of the model, batch by batch
classes     accuracy, F1, ROC AUC and log loss
numbers     mean absolute error, root mean squared error and R²
tokens      loss, perplexity and accuracy
bootstrap   intervals
"""
