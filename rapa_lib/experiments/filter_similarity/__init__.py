"""The filter-similarity experiment: do tiles come to agree, and does the theory say so?"""

from rapa_lib.experiments.filter_similarity.experiment import FilterSimilarity

EXPERIMENT = FilterSimilarity

__all__ = ["EXPERIMENT", "FilterSimilarity"]
