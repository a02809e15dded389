"""The report's page and TensorBoard's in a real browser."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from playwright.sync_api import Browser, Error, Page, sync_playwright
from runs import write_grid

from vae_lab import report
from vae_lab.config import Run, config_folder, register_resolvers
from vae_lab.training import runner

register_resolvers()

CELLS = ["vanilla-vanilla", "vanilla-encdec", "encdec-vanilla", "encdec-encdec"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium's sandbox refuses root
        try:
            drawing = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # the projector's WebGL without a GPU
            arguments = [*drawing, "--no-sandbox"] if root else drawing
            browser = playwright.chromium.launch(executable_path=installed, args=arguments)
        except Error as error:
            pytest.skip(f"no Chromium here, `make browser` installs it ({str(error).splitlines()[0]})")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a grid with clear differences."""
    sweep = tmp_path_factory.mktemp("sweeps") / "study"
    write_grid(sweep, seeds=3, effect=1e-3, noise=1e-5)
    return report.write(report.prepare([sweep])) / "report.html"


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(request.url))
    page.goto(file.as_uri())
    yield page
    context.close()
    assert said == []


def column(page: Page, title: str, number: int) -> list[str]:
    rows = page.locator("section", has=page.get_by_role("heading", name=title, exact=True)).locator("tbody tr")
    return [rows.nth(row).locator("td").nth(number).inner_text() for row in range(rows.count())]


def test_it_renders_with_every_cell_and_logs_no_error(page: Page) -> None:
    assert page.title() == "study · vae_lab"
    for title in ("Test losses", "Cost"):
        assert column(page, title, 0) == CELLS
    assert column(page, "Beside the published figures", 0) == 4 * CELLS  # total, reconstruction, KL, time
    assert 3 <= page.locator(".findings li").count() <= 6
    figures = page.locator("figure svg")
    assert figures.count() == 5 + 2 * len(CELLS)
    for number in range(figures.count()):
        box = figures.nth(number).bounding_box()
        assert box is not None
        assert box["width"] > 400
        assert box["height"] > 100
    for cell in CELLS:
        assert page.locator(f'[id="{cell}_history"]').is_visible()


def test_a_table_is_sorted_by_a_click_and_turned_by_another(page: Page) -> None:
    head = page.get_by_role("button", name="test total")
    head.click()
    rising = column(page, "Test losses", 2)
    assert rising == sorted(rising, key=lambda text: float(text.split()[0]))
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("test total")
    head.click()
    assert column(page, "Test losses", 2) == rising[::-1]
    assert sorted(column(page, "Test losses", 0)) == sorted(CELLS)


def test_it_is_dark_where_the_reader_wants_it_dark(page: Page) -> None:
    def brightness(selector: str, style: str) -> float:
        colour = page.eval_on_selector(selector, f"element => getComputedStyle(element).{style}")
        return sum(map(int, colour.strip("rgb()").split(","))) / 3

    text = "figure svg text"
    assert brightness("body", "backgroundColor") > 200 > 100 > brightness(text, "fill")
    page.emulate_media(color_scheme="dark")
    assert brightness("body", "backgroundColor") < 50 < 200 < brightness(text, "fill")
    page.emulate_media(media="print", color_scheme="dark")
    assert brightness("body", "backgroundColor") > 200 > 100 > brightness(text, "fill")


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_only_tables_and_figures_scroll_sideways(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("h1").bounding_box()["x"] >= 0


# --- TensorBoard -------------------------------------------------------------------------------------------

RUNS = ["vanilla-vanilla/seed-0", "vanilla-vanilla/seed-1"]


@pytest.fixture(scope="module")
def tensorboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that shows two runs, trained for it."""
    folder = tmp_path_factory.mktemp("runs")
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        for seed in (0, 1):
            words = ["name=shown", f"seed={seed}", "trainer.max_epochs=2"]
            config = Run.of(compose("train", words, return_hydra_config=True)).config
            data = config.data.model_copy(update={"num_train": 200, "num_val": 40, "num_test": 60})
            small = config.model_copy(update={"data": data})
            place = folder / "shown" / "vanilla-vanilla" / f"seed-{seed}"
            logger = {"tensorboard": small.logger["tensorboard"].model_copy(update={"save_dir": str(place)})}
            pictures = {"pictures": small.callbacks["pictures"].model_copy(update={"folder": str(place)})}
            small = small.model_copy(update={"logger": logger, "callbacks": {**small.callbacks, **pictures}})
            assert runner.run(Run(small, "vanilla", "vanilla", "vanilla-vanilla", (), place)).finished
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder / "shown"), "--port", "0"]
    log = folder / "server.log"
    with open(log, "w") as said, subprocess.Popen(command, stderr=said) as server:
        while not (address := re.search(r"http://\S+", log.read_text())) and server.poll() is None:
            time.sleep(0.1)
        assert address, log.read_text()
        yield address[0]
        server.terminate()


@pytest.mark.parametrize(
    ("tab", "words"),
    [
        ("scalars", {*RUNS, "optimizer", "test"}),
        ("images", {*RUNS, "latent/interpolations", "latent/traversals"}),
        ("hparams", {*RUNS, "encoder", "latent.dim", "test/total"}),
        ("custom_scalars", {*RUNS, "all cells", "validation total"}),
        ("projector", {*RUNS, "2 runs found", "1 tensor found"}),
    ],
)
def test_tensorboard_shows_the_runs_on_its_pages(browser: Browser, tensorboard: str, tab: str, words: set[str]) -> None:
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    try:
        page.goto(f"{tensorboard}#{tab}")
        missing, until = words, time.monotonic() + 60
        while missing and time.monotonic() < until:  # the projector is a page in a page
            page.wait_for_timeout(200)
            missing = {word for word in words if not any(frame.get_by_text(word).count() for frame in page.frames)}
        assert not missing
        assert not any(frame.get_by_text("does not have WebGL").count() for frame in page.frames)
    finally:
        page.close()
