"""What a visitor waits for: `python benchmarks/click_to_paint.py` serves the page, clicks Generate in
Chromium and writes, as JSON, the seconds from click to first painted frame and to finished picture, and the
server's own peak memory.

With "as it comes" the finished picture shows the sampler's own pace, else the paced playback's.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import Page, sync_playwright

import app
from benchmarks.common import RESULTS, positive, write_report
from nestar.settings import SampleSettings
from nestar.ui.assets import launch_options

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
    parser.add_argument("--repo", help="weights, as for app.py; default: the embedded ones")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=RESULTS / "click_to_paint.json")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        parser.error("no Chromium was found; get it with `apt-get install chromium`")
    demo = app.open_page(arguments.repo, None, arguments.device)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(url)
        page.locator(".film .ready").first.wait_for()
        result = {
            "paced": clicks(page, arguments.runs, False),
            "as_it_comes": clicks(page, arguments.runs, True),
        }
        browser.close()
    demo.close(verbose=False)
    result |= {"steps": SampleSettings.steps, "solver": SampleSettings.solver}
    result["memory_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    write_report(arguments.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
