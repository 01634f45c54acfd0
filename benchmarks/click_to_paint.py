"""What a visitor waits for: `python -m benchmarks.click_to_paint` serves the page, clicks Generate in
Chromium and writes, as JSON, the seconds from click to first painted frame and to finished picture, and the
server's own peak memory.

With "as it comes" the finished picture shows the sampler's own pace, else the paced playback's.
"""

import argparse
import json
import resource
import statistics
from pathlib import Path

from playwright.sync_api import Page

from benchmarks.browser import add_page_arguments, page_in_browser
from benchmarks.common import RESULTS, positive, write_report
from nestar.checkpoints import default_source, open_checkpoints
from nestar.model import fingerprint_of
from nestar.settings import SampleSettings

# Resolves to when, in seconds after the click, the first frame and the finished picture were painted.
CLICK = """() => new Promise((resolve) => {
  const picture = document.querySelector(".picture img.over");
  const times = {};
  let clicked = 0;
  new MutationObserver(async (_, observer) => {
    const final = picture.alt.startsWith("Finished");
    await picture.decode();
    requestAnimationFrame(() => setTimeout(() => {
      const elapsed = (performance.now() - clicked) / 1000;
      times.first ??= elapsed;
      if (final) {
        observer.disconnect();
        resolve({first: times.first, finished: elapsed});
      }
    }));
  }).observe(picture, {attributes: true, attributeFilter: ["alt"]});
  clicked = performance.now();
  document.querySelector("#generate").click();
})"""


def clicks(page: Page, count: int, as_it_comes: bool) -> dict[str, float]:
    """Medians over `count` runs, after one that warms up."""
    page.locator(".as-it-comes").set_checked(as_it_comes)
    runs = []
    for _ in range(count + 1):
        runs.append(page.evaluate(CLICK))
        page.locator('.stage[data-state="finished"]:not(.playing)').wait_for()
    return {
        f"{name}_s": round(statistics.median(run[name] for run in runs[1:]), 3)
        for name in ("first", "finished")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=positive, default=5)
    add_page_arguments(parser)
    parser.add_argument("--out", type=Path, default=RESULTS / "click_to_paint.json")
    arguments = parser.parse_args()
    with page_in_browser(parser, arguments) as (browser, url):
        page = browser.new_page()
        page.goto(url)
        page.locator(".film .ready").first.wait_for()
        result = {
            "paced": clicks(page, arguments.runs, False),
            "as_it_comes": clicks(page, arguments.runs, True),
        }
    checkpoint, usual = open_checkpoints(arguments.repo or default_source())[0], SampleSettings
    own, shown = checkpoint.defaults, f"k{usual.k}-{usual.order}"
    result |= {name: own.get(name, getattr(usual, name)) for name in ("steps", "solver")}
    if shown in checkpoint.nestings:
        result["fingerprints"] = {shown: fingerprint_of(checkpoint.nesting(shown))}
    result["memory_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    write_report(arguments.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
