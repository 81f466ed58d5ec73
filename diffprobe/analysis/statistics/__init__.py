"""One place for groups, intervals, permutations, corrections and selection: what every number of a table rests on."""

from diffprobe.analysis.statistics.bootstrap import (
    FEW_GROUPS,
    METHODS,
    Interval,
    Method,
    bootstrap_interval,
    paired_interval,
)
from diffprobe.analysis.statistics.correction import Corrected, benjamini_hochberg
from diffprobe.analysis.statistics.forms import (
    AnyStatistic,
    Statistic,
    SumStatistic,
    WeightStatistic,
    area_of,
    difference,
    evaluate,
    mean_of,
    mean_statistic,
    ratio,
)
from diffprobe.analysis.statistics.half_samples import half_sample_interval
from diffprobe.analysis.statistics.misclassification import (
    CorrectedShares,
    confusion_counts,
    corrected_shares,
    rogan_gladen,
)
from diffprobe.analysis.statistics.paired import PairedResamples
from diffprobe.analysis.statistics.permutation import LabelPermutations, LabelStatistic, permutation_null
from diffprobe.analysis.statistics.selection import Selected, selected_interval
from diffprobe.analysis.statistics.sign_flip import sign_flip_nulls, smallest_sign_flip_p
from diffprobe.analysis.statistics.two_way import TwoWayResamples
from diffprobe.core.groups import SINGLE_SAMPLES, Groups
from diffprobe.probes.group_permutation import GroupPermutation
from diffprobe.probes.null_distribution import Null

__all__ = [
    "AnyStatistic",
    "Corrected",
    "CorrectedShares",
    "FEW_GROUPS",
    "GroupPermutation",
    "Groups",
    "Interval",
    "LabelPermutations",
    "LabelStatistic",
    "METHODS",
    "Method",
    "Null",
    "PairedResamples",
    "SINGLE_SAMPLES",
    "Selected",
    "Statistic",
    "SumStatistic",
    "TwoWayResamples",
    "WeightStatistic",
    "area_of",
    "benjamini_hochberg",
    "bootstrap_interval",
    "confusion_counts",
    "corrected_shares",
    "difference",
    "evaluate",
    "half_sample_interval",
    "mean_of",
    "mean_statistic",
    "paired_interval",
    "permutation_null",
    "ratio",
    "rogan_gladen",
    "selected_interval",
    "sign_flip_nulls",
    "smallest_sign_flip_p",
]
