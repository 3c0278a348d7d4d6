"""Early exit: training a cascade, thresholds for a budget, running images that leave, files of every exit."""
