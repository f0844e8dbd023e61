"""The headline of a run: how small, how good, how fast."""

from contraprune.progress import duration
from contraprune.report.parts import Figure, readable, tokens
from contraprune.report.record import Run, Timing
from contraprune.report.svg import number


def headline(run: Run) -> list[Figure]:
    """How small, how good, how fast."""
    return [_size(run), _quality(run), _speed(run)]


def _size(run: Run) -> Figure:
    weights = f"{run.bytes_on_disk() / 1e6:.1f} MB of weights on disk" if run.model.is_dir() else ""
    parameters = run.results["parameters"]
    if not run.pruned:
        return Figure(question="How large", value=number(parameters["all"]), details=["parameters", weights])
    kind = "of the parameters" if run.structured else "non-zero parameters"
    before, after = parameters["before"], parameters["after"]
    details = [
        "of the encoder's weights",
        f"{after / 1e6:.2f} M of {before / 1e6:.2f} M {kind.removeprefix('of the ')} ({after / before:.0%})",
    ]
    if run.structured:
        details.append(weights)
    elif weights:
        details.append(f"{weights}: zeros are stored too, until contraprune export --format sparse")
    return Figure(question="How small", value=f"{run.results['density']['encoder']:.1%}", details=details)


def _quality(run: Run) -> Figure:
    name, value = run.metric
    error = run.standard_error()
    details = [f"{readable(name)}" + (f", standard error {error:.3f}" if error is not None else "")]
    if run.pruned:
        details.append(f"the dense teacher has {run.results['teacher_metrics'][name]:.4f}")
        if run.results.get("retained") is not None:
            details.append(f"so {run.results['retained']:.1%} of it is kept")
    return Figure(question="How good", value=f"{value:.4f}", details=details)


def _speed(run: Run) -> Figure:
    seconds = run.results["seconds"]["total"]
    took = f"the run took {duration(seconds)}"
    fastest = min((one for one in _timings(run) if not one.dense), key=lambda one: one.p50, default=None)
    if fastest is not None and fastest.speedup is None:
        details = [f"in {fastest.runtime}; no dense model was measured beside it", tokens(fastest.shape)]
        return Figure(question="How fast", value=f"{fastest.p50:.1f} ms", details=details)
    if fastest is not None:
        details = [
            f"as the dense model in its fastest runtime ({fastest.p50:.1f} ms in {fastest.runtime})",
            tokens(fastest.shape),
        ]
        return Figure(question="How fast", value=f"{fastest.speedup:.1f}× as fast", details=details)
    if not run.pruned:
        return Figure(question="How long", value=duration(seconds), details=["for the whole run"])
    if run.structured:
        return Figure(
            question="How fast",
            value=f"{1 / max(run.results['density']['encoder'], 1e-9):.1f}× fewer",
            details=["multiplications in the encoder's matrices, in any runtime; not timed in this run", took],
        )
    return Figure(
        question="How fast",
        value="as dense",
        details=["in PyTorch, which multiplies by zeros too; the sparse CPU engine skips them", took],
    )


def _timings(run: Run) -> list[Timing]:
    """Those of the first shape."""
    timings = [] if run.bench is None else run.bench.timings
    return [one for one in timings if one.shape == timings[0].shape]
