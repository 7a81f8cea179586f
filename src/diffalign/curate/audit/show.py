"""What an audit tells people: two short tables and a warning for each thing to mend."""

from __future__ import annotations

from collections.abc import Iterator

from diffalign.core import print_table, warn
from diffalign.curate.audit.leaks import is_leak
from diffalign.curate.audit.result import Audit, LeakTest
from diffalign.stats import Estimate

__all__ = ["find_warnings", "print_audit"]

_NOTICEABLE = 0.1  # of a logarithm: a tenth more or less


def print_audit(audit: Audit) -> None:
    """Print the main figures on stdout and each warning on stderr."""
    print_table(("audit", "", "95 % interval"), _rows(audit), title=f"{audit.num_audited} of {audit.num_pairs} pairs")
    for warning in audit.warnings:
        warn(warning)


def _rows(audit: Audit) -> Iterator[tuple[str, str, str]]:
    outside, copies, captions = audit.outside, audit.duplicates, audit.captions
    yield "pairs that differ outside the mask", f"{outside.num_differing} of {outside.num_pairs}", ""
    yield "largest difference there", f"{outside.largest:g} levels", ""
    for name, test in (("leak outside the mask", audit.leak), ("leak of sizes and files", audit.file_leak)):
        if test:
            yield f"{name}, AUC of pairs", *_figures(test.auc)
            yield f"{name}, AUC of single images", *_figures(test.single_auc)
    if audit.no_leak:
        yield "leak outside the mask", "not tested", audit.no_leak
    for name, estimate in audit.parity.differences.items():
        yield f"{name}, chosen - rejected ({audit.parity.area})", *_figures(estimate)
    for name, rate in audit.rewards.items():
        yield f"{name} prefers chosen", *_figures(rate)
    for two in audit.between:
        kappa = "" if two.kappa is None else f"kappa {two.kappa:.2f}"
        yield f"{two.first} agrees with {two.second}", f"{two.agreement:.3f}", kappa
    yield "pairs that share their chosen image", str(copies.num_identical), ""
    yield "pairs whose chosen images look alike", str(copies.num_near), ""
    yield "captions empty, long, repeated", f"{captions.num_empty}, {captions.num_long}, {captions.num_repeated}", ""
    if captions.fit:
        yield "captions that do not fit", f"{captions.fit.num_misfits} of {captions.fit.num_scored}", ""


def _figures(estimate: Estimate) -> tuple[str, str]:
    return f"{estimate.mean:.3f}", f"{estimate.low:.3f} to {estimate.high:.3f}"


def find_warnings(audit: Audit) -> Iterator[str]:
    """A sentence for each thing that should be mended before training."""
    outside, copies, captions = audit.outside, audit.duplicates, audit.captions
    if outside.num_differing:
        yield (
            f"pixels outside the mask differ in {outside.num_differing} of {outside.num_pairs} pairs, by up to "
            f"{outside.largest:g} levels: not composited; put the damage back into the chosen image"
        )
    if audit.leak and audit.leak.cause:
        yield _leak_warning("outside the mask", audit.leak)
    if audit.file_leak and audit.file_leak.cause:
        yield _leak_warning("by sizes and files", audit.file_leak)
    yield from _parity_warnings(audit)
    if not outside.num_pairs:
        yield f"no leak test: {audit.no_leak}; sizes, files and parity alone were compared"
    if outside.num_all_masked or outside.num_empty_masks:
        yield f"{outside.num_all_masked} masks cover the whole image, {outside.num_empty_masks} cover nothing"
    if copies.num_equal_sides:
        yield f"both sides are the same image in {copies.num_equal_sides} pairs"
    if copies.num_contradicting:
        yield f"{copies.num_contradicting} pairs reject an image that another pair chooses"
    if captions.num_empty:
        yield f"{captions.num_empty} captions are empty"
    for name, rate in audit.rewards.items():
        if rate.high < 0.5:
            yield f"{name} prefers the rejected image in {1 - rate.mean:.0%} of {rate.num_prompts} pairs"
    if captions.fit and captions.fit.share_beaten < 0.6:
        yield f"captions fit their images little better than others do: they beat {captions.fit.share_beaten:.0%}"


def _leak_warning(where: str, test: LeakTest) -> str:
    name, auc = ("pairs", test.auc) if is_leak(test.auc) else ("single images", test.single_auc)
    most = max(test.by_group, key=lambda one: test.by_group[one])
    return (
        f"chosen and rejected can be told apart {where}: AUC {auc.mean:.2f} of {name} ({auc.low:.2f} to "
        f"{auc.high:.2f}), most by {most}; likely cause: {test.cause}"
    )


def _parity_warnings(audit: Audit) -> Iterator[str]:
    parity = audit.parity
    if parity.num_sizes_differ or parity.num_modes_differ:
        yield (
            f"the two sides differ in size in {parity.num_sizes_differ} pairs and in mode in "
            f"{parity.num_modes_differ}: bring both through the same resize"
        )
    where = "outside the mask" if parity.area == "outside" else "over the whole image, damage included"
    for name, estimate in parity.differences.items():
        if name != "bytes_per_pixel" and abs(estimate.mean) > _NOTICEABLE and (estimate.low > 0 or estimate.high < 0):
            yield (
                f"{name} of chosen and rejected differs {where}: {estimate.mean:+.2f} "
                f"({estimate.low:.2f} to {estimate.high:.2f}); bring both through the same codec and resize"
            )
