"""What a precision or a gradient hook does to the training itself: trains on real small data, over seeds, beside the speed.

options -> engine -> worker -> verdict: each takes the records of the one before it. Only the worker and its data need torch.
"""
