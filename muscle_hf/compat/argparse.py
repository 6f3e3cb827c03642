"""What is used of Python's argparse."""

# By owner: name -> why.
PRIVATE = {"ArgumentParser": {"_negative_number_matcher": "-2% and -1e-3 are values, not options"}}
