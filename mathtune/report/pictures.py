"""Which charts a record has: the page, Prefect and W&B show the same ones."""

from mathtune.figures import SolverMetrics, VerifierMetrics
from mathtune.report import words
from mathtune.report.accuracy_charts import accuracy_chart, lengths_chart
from mathtune.report.charts import Chart
from mathtune.report.solver_charts import samples_chart
from mathtune.report.training_charts import GRPO_PANELS, SFT_PANELS, training_chart
from mathtune.report.verifier_charts import histogram_chart, reliability_chart, threshold_chart
from mathtune.run_record import RunRecord

NARROW = 400  # CSS pixels, for those charts that are drawn twice


def charts_of(record: RunRecord) -> list[Chart]:
    """The charts of a record, in the order of the page; what the record does not hold is left out."""
    last = words.last_evaluated(record)
    charts = [accuracy_chart(record)]
    match last.metrics if last else None:
        case VerifierMetrics(histogram=histogram, calibration=calibration):
            charts += [reliability_chart(calibration), threshold_chart(calibration)] if calibration else []
            charts += [histogram_chart(histogram)] if histogram else []
        case SolverMetrics(samples=samples, accuracy=greedy) if samples and samples.rows:
            charts.append(samples_chart(samples, greedy))
    charts += [*training_charts(record).values(), lengths_chart(record.links)]
    return [chart for chart in charts if chart]


def training_charts(record: RunRecord, width: int = 960, suffix: str = "") -> dict[str, Chart | None]:
    """Training by kind of link ("sft", "grpo")."""
    return {kind: training_chart([link for link in record.links if link.kind == kind], panels, f"{kind}{suffix}", title, width)
            for kind, panels, title in (("sft", SFT_PANELS, "Training"), ("grpo", GRPO_PANELS, "GRPO"))}
