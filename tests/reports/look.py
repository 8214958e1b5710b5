"""Write every kind of page and photograph it: ``python -m tests.reports.look FOLDER``.

Not a test: someone has to look. Needs a Chromium on the path.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hbo.reports import write_comparison, write_report
from tests.reports.fake_run import (
    AWKWARD,
    EXAMS,
    FakeEntry,
    FakeRun,
    fake_comparison,
    fake_run,
    many_subsets,
)

PAGES = {
    "usual": (EXAMS, FakeRun()),
    "awkward": (AWKWARD, FakeRun()),
    "many": (many_subsets(100), FakeRun(steps=400, interval=20, draws_per_step=64)),
    "two": ({"a": 100, "b": 30}, FakeRun(groups=2, accuracy=False)),
    "static": (EXAMS, FakeRun(policy="uni", moves=False)),
    "unfinished": (EXAMS, FakeRun(finished=False)),
}
SCREENS = {"desk": (1200, 3000), "phone": (360, 3000)}
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def photograph(page: Path, target: Path, size: tuple[int, int], dark: bool) -> None:
    """One screenshot, in the light or dark mode that the page itself asks the browser for."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    with tempfile.TemporaryDirectory() as profile:
        flags = [
            f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--screenshot={target}",
        ]
        command = [browser, *QUIET, *flags, page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def main(folder: Path) -> None:
    """Write the pages, then photograph each on both screens in both modes."""
    pages = {}
    for name, (sizes, run) in PAGES.items():
        fake_run(folder / name, sizes, run)
        pages[name] = write_report(folder / name)
    runs = []
    for policy in ("prop", "uni", "hbo"):
        for seed in (42, 43):
            run = FakeRun(policy=policy, seed=seed, moves=policy == "hbo")
            runs.append(folder / f"{policy}-{seed}")
            fake_run(runs[-1], EXAMS, run)
    pages["compare"] = write_report(runs, folder / "compare.html")
    entries = [
        FakeEntry("prop", run=FakeRun(moves=False, seconds_per_step=1.5, look_every=12)),
        FakeEntry("temp-2", -0.02, "temp", run=FakeRun(seconds_per_step=1.6, look_every=12)),
        FakeEntry("temp-9", -0.05, "temp", 0.1),
        FakeEntry("hbo", -0.08, run=FakeRun(seconds_per_step=2.0, look_every=12)),
        FakeEntry("mos", -0.03, seeds=(1, 2), run=FakeRun(seconds_per_step=2.2, look_every=12)),
    ]
    pages["comparison"] = write_comparison(
        fake_comparison(folder / "comparison", entries, sizes=EXAMS)
    )
    for name, page in pages.items():
        for screen, size in SCREENS.items():
            for mode in ("light", "dark"):
                target = folder / f"{name}-{screen}-{mode}.png"
                photograph(page, target.resolve(), size, mode == "dark")
                print(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
